"""A pair of blocks in the Pallas kernels of `pointwise_gpu`, and the arrays that it comes from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int32

from dlrm_jax.attention.attention_bias import Bias, time_bucket
from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.attention.pointwise_tile import places, pointwise_weights, product

BLOCK = 64
"""Tokens of a block."""

BUCKETS = 128
"""Buckets of time, a power of two. The longest time of an int32 is in bucket 71."""

# Three products of parts of the factors on tensor cores are about as exact as one of float32
# without them. Compiled for an H100 at widths of 64, the forward kernel spills 36 bytes of
# registers; with the latter it spills 16 kB.
_EXACT = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3

_LEAST_WIDTH = 16  # of the factors of Triton's products


class Inputs(NamedTuple):
    """What kernels read: T tokens, widths a and v of powers of two.

    Attributes:
        query: queries, [T, H, a].
        key: keys, [T, H, a].
        value: values, [T, H, v].
        starts: place of the first token of each token's sequence, [T].
        times: time of each token, [T]; None without a bias by time.
        next_times: time of the next token, [T]; None without a bias by time.
        by_distance: bias by distance, [L].
        by_time: bias of a bucket of time, [`BUCKETS`]; None without.
        cotangent: gradient of the results, [T, H, v]; None on the way forward.
    """

    query: Any
    key: Any
    value: Any
    starts: Any
    times: Any
    next_times: Any
    by_distance: Any
    by_time: Any
    cotangent: Any


class Pair:
    """A block of queries and a block of keys of a head, read from memory.

    Args:
        given: references to the inputs.
        head: number of the head.
        query_block: number of the block of queries.
        key_block: number of the block of keys.
        scale: factor of all weights.
        interpret: whether a CPU emulates the GPU.

    Attributes:
        query: queries, [`BLOCK`, a].
        key: keys, [`BLOCK`, a].
        value: values, [`BLOCK`, v].
        cotangent: gradient of the results, [`BLOCK`, v]; None on the way forward.
        weights: weights of the keys, [`BLOCK`, `BLOCK`].
        buckets: buckets of time, [`BLOCK`, `BLOCK`]; None without a bias by time.
    """

    def __init__(
        self,
        given: Inputs,
        head: Any,
        query_block: Any,
        key_block: Any,
        scale: float,
        interpret: bool,
    ):
        self._exact = jax.lax.Precision.HIGHEST if interpret else _EXACT
        queries, keys = tokens_of(query_block), tokens_of(key_block)
        self.query, self.key = given.query[queries, head, :], given.key[keys, head, :]
        self.value = given.value[keys, head, :]
        of_result = given.cotangent
        self.cotangent: Any = None if of_result is None else of_result[queries, head, :]
        of_query, of_key = places(query_block, key_block, BLOCK)
        last = given.by_distance.shape[0] - 1
        scores = self.product(self.query, self.key, 1, 1)
        scores += given.by_distance[jnp.clip(of_query - of_key, 0, last)]
        self.buckets = None
        if given.by_time is not None:
            apart = given.next_times[queries][:, None] - given.times[keys][None, :]
            self.buckets = time_bucket(apart)
            scores += given.by_time[self.buckets]
        seen = (of_key <= of_query) & (given.starts[queries][:, None] <= of_key)
        self.weights, self._slopes = pointwise_weights(scores, seen, scale)

    def product(self, x: Array, y: Array, of_x: int, of_y: int) -> Float[Array, "m n"]:
        """See `pointwise_tile.product`."""
        return product(x, y, of_x, of_y, self._exact)

    def gradients(self) -> Float[Array, "q k"]:
        """The gradients of the scores."""
        return self._slopes * self.product(self.cotangent, self.value, 1, 1)


def tokens_of(block: Any) -> Any:
    """The places of the tokens of a block."""
    return pl.ds(block * BLOCK, BLOCK)


def padded_inputs(
    query: Array, key: Array, value: Array, bias: Bias, sequences: Sequences, cotangent: Any
) -> Inputs:
    """The arrays as kernels read them, with filling up to whole blocks and powers of two."""
    more = -len(query) % BLOCK

    def whole(x: Array) -> Array:
        width = max(_LEAST_WIDTH, pl.next_power_of_2(x.shape[2]))
        x = x.astype(value.dtype)
        return jnp.pad(x, [(0, more), (0, 0), (0, width - x.shape[2])])

    def padded(x: Array, filling: int = 0) -> Int32[Array, " T"]:
        return jnp.pad(x, (0, more), constant_values=filling)

    tokens = len(query) + more
    starts = padded(jnp.where(sequences.present, sequences.starts, tokens), tokens)
    times = following = by_time = None
    if bias.by_time is not None:
        assert sequences.times is not None
        assert sequences.next_times is not None
        times, following = padded(sequences.times), padded(sequences.next_times)
        by_time = bias.by_time[:BUCKETS].astype(jnp.float32)
    by_distance = bias.by_distance.astype(jnp.float32)
    of_result = None if cotangent is None else whole(cotangent)
    return Inputs(
        whole(query), whole(key), whole(value), starts, times, following, by_distance, by_time,
        of_result,
    )  # fmt: skip


def cut(found: Float[Array, "N H w"], like: Float[Array, "T H d"]) -> Float[Array, "T H d"]:
    """What kernels have found, in the shape and type of the tokens'."""
    return found[: len(like), :, : like.shape[2]].astype(like.dtype)
