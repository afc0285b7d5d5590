"""HSTU's attention as Pallas kernels for TPUs; `pointwise_attention` has the formula.

Packed tokens are cut into blocks. A program of the forward pass has one block of queries, and a
pipeline inside it brings the blocks of keys that its sequences need from the memory of the device.
So does a backward pass for the gradients of queries and biases; another one has a block of keys,
and goes through the queries that need it. No array is larger than those of the tokens. The programs
run one after the other, so sums are the same each time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int32

from dlrm_jax.attention.attention_bias import Bias
from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.attention.pointwise_tile import places, pointwise_weights, product, spans
from dlrm_jax.attention.tpu_bias import Biases, PairBias, biases_of, column, gradient_of, sums_for
from dlrm_jax.attention.tpu_blocks import (
    BLOCK,
    go_through,
    in_memory,
    of_program,
    run_kernel,
    sums_like,
    whole,
)


class _Queries(NamedTuple):
    """What a pair of blocks has of its queries: T tokens in memory, or a block of them.

    Attributes:
        query: queries, [H, T, a].
        starts: place of the first token of each token's sequence, [1, T].
        next_times: time of the next token, [1, T]; None without a bias by time.
        cotangent: gradient of the results, [H, T, v]; None on the way forward.
    """

    query: Any
    starts: Any
    next_times: Any
    cotangent: Any


class _Keys(NamedTuple):
    """What a pair of blocks has of its keys: key [H, T, a], value [H, T, v] and times [1, T]."""

    key: Any
    value: Any
    times: Any


def forward(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    bias: Bias,
    sequences: Sequences,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "T H v"]:
    """See `pointwise_attention`.

    Args:
        query: queries.
        key: keys.
        value: values.
        bias: bias by distance and time.
        sequences: where the sequences are.
        scale: factor of all weights.
        interpret: whether a CPU emulates the TPU.
    """
    given = _padded(query, key, value, bias, sequences, None)
    queries, keys, biases = given

    def kernel(first: Any, queries: _Queries, far: _Keys, biases: Biases, out: Any) -> None:
        own = pl.program_id(0)
        out[...] = jnp.zeros_like(out)

        def add(keys: _Keys) -> None:
            pair = _Pair(queries, keys, biases, own, first[own] + pl.program_id(0), scale)
            for head in range(len(queries.query)):
                weights, _ = pair.weights(head)
                out[head] += product(weights, keys.value[head], 1, 0)

        go_through(add, far, first[own], own + 1)

    first, _ = spans(queries.starts[0], BLOCK)
    specs = of_program(queries), in_memory(keys), whole(biases)
    (out,) = run_kernel(kernel, first, given, specs, [sums_like(keys.value)], interpret)
    return _tokens(out, value)


def backward(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    bias: Bias,
    sequences: Sequences,
    scale: float,
    cotangent: Float[Array, "T H v"],
    interpret: bool = False,
) -> tuple[Float[Array, "T H a"], Float[Array, "T H a"], Float[Array, "T H v"], Bias]:
    """The gradients of `forward` by query, key, value and bias, given that of its result."""
    given = _padded(query, key, value, bias, sequences, cotangent)
    of_query, of_biases = _by_queries(*given, scale, interpret)
    of_key, of_value = _by_keys(*given, scale, interpret)
    found = _tokens(of_query, query), _tokens(of_key, key), _tokens(of_value, value)
    return *found, gradient_of(bias, of_biases, _count(given[0]))


def _by_queries(
    queries: _Queries, keys: _Keys, biases: Biases, scale: float, interpret: bool
) -> tuple[Float[Array, "H T a"], Biases]:
    """The gradients of queries and biases."""

    def kernel(
        first: Any, queries: _Queries, far: _Keys, biases: Biases, of_query: Any, of_biases: Biases
    ) -> None:
        own = pl.program_id(0)
        of_query[...] = jnp.zeros_like(of_query)

        @pl.when(own == 0)
        def _() -> None:
            for sums in jax.tree.leaves(of_biases):
                sums[...] = jnp.zeros_like(sums)

        def add(keys: _Keys) -> None:
            pair = _Pair(queries, keys, biases, own, first[own] + pl.program_id(0), scale)
            total = jnp.zeros((BLOCK, BLOCK), jnp.float32)
            for head in range(len(queries.query)):
                _, of_scores = pair.gradients(head)
                of_query[head] += product(of_scores, keys.key[head], 1, 0)
                total += of_scores
            pair.bias.add_gradient(of_biases, total)

        go_through(add, far, first[own], own + 1)

    first, _ = spans(queries.starts[0], BLOCK)
    specs = of_program(queries), in_memory(keys), whole(biases)
    outs = [sums_like(queries.query), sums_for(biases)]
    return run_kernel(kernel, first, (queries, keys, biases), specs, outs, interpret)


def _by_keys(
    queries: _Queries, keys: _Keys, biases: Biases, scale: float, interpret: bool
) -> tuple[Float[Array, "H T a"], Float[Array, "H T v"]]:
    """The gradients of keys and values."""

    def kernel(
        behind: Any, far: _Queries, keys: _Keys, biases: Biases, of_key: Any, of_value: Any
    ) -> None:
        own = pl.program_id(0)
        of_key[...] = jnp.zeros_like(of_key)
        of_value[...] = jnp.zeros_like(of_value)

        def add(queries: _Queries) -> None:
            pair = _Pair(queries, keys, biases, own + pl.program_id(0), own, scale)
            for head in range(len(keys.key)):
                weights, of_scores = pair.gradients(head)
                of_key[head] += product(of_scores, queries.query[head], 0, 0)
                of_value[head] += product(weights, queries.cotangent[head], 0, 0)

        go_through(add, far, own, behind[own])

    _, behind = spans(queries.starts[0], BLOCK)
    specs = in_memory(queries), of_program(keys), whole(biases)
    outs = [sums_like(keys.key), sums_like(keys.value)]
    return run_kernel(kernel, behind, (queries, keys, biases), specs, outs, interpret)


class _Pair:
    """A block of queries and a block of keys in the memory of a kernel.

    Args:
        queries: references to the queries.
        keys: references to the keys.
        biases: references to the biases.
        query_block: number of the block of queries.
        key_block: number of the block of keys.
        scale: factor of all weights.
    """

    def __init__(
        self,
        queries: _Queries,
        keys: _Keys,
        biases: Biases,
        query_block: Any,
        key_block: Any,
        scale: float,
    ):
        self._queries, self._keys = queries, keys
        apart = query_block - key_block
        self.bias = PairBias(biases, apart, queries.next_times, keys.times)
        of_query, of_key = places(query_block, key_block, BLOCK)
        self._seen = (of_key <= of_query) & (column(queries.starts[...]) <= of_key)
        self._scale = scale

    def weights(self, head: int) -> tuple[Float[Array, "q k"], Float[Array, "q k"]]:
        """The weights of a head, and their derivatives by the scores."""
        scores = product(self._queries.query[head], self._keys.key[head], 1, 1)
        return pointwise_weights(scores + self.bias.values, self._seen, self._scale)

    def gradients(self, head: int) -> tuple[Float[Array, "q k"], Float[Array, "q k"]]:
        """The weights of a head, and the gradients of its scores."""
        weights, slopes = self.weights(head)
        of_weights = product(self._queries.cotangent[head], self._keys.value[head], 1, 1)
        return weights, slopes * of_weights


def _padded(
    query: Array, key: Array, value: Array, bias: Bias, sequences: Sequences, cotangent: Any
) -> tuple[_Queries, _Keys, Biases]:
    """The arrays as kernels read them, with filling up to whole blocks."""
    more = -len(query) % BLOCK
    tokens = len(query) + more

    def by_head(x: Array) -> Array:
        return jnp.pad(x.astype(value.dtype), [(0, more), (0, 0), (0, 0)]).swapaxes(0, 1)

    def row(x: Array, filling: int = 0) -> Int32[Array, "1 T"]:
        return jnp.pad(x, (0, more), constant_values=filling)[None]

    starts = jnp.where(sequences.present, sequences.starts, tokens)
    times = following = None
    if bias.by_time is not None:
        assert sequences.times is not None
        assert sequences.next_times is not None
        times, following = row(sequences.times), row(sequences.next_times)
    of_result = None if cotangent is None else by_head(cotangent)
    queries = _Queries(by_head(query), row(starts, tokens), following, of_result)
    keys = _Keys(by_head(key), by_head(value), times)
    return queries, keys, biases_of(bias, tokens // BLOCK)


def _tokens(found: Float[Array, "H N d"], like: Float[Array, "T H d"]) -> Float[Array, "T H d"]:
    """What kernels have found, in the shape and type of the tokens'."""
    return found.swapaxes(0, 1)[: len(like)].astype(like.dtype)


def _count(queries: _Queries) -> int:
    return queries.starts.shape[1] // BLOCK
