"""Bias of attention by how far apart two tokens of a sequence are, in places and in time."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from dlrm_jax.attention.block_pairs import BLOCK, Chunk, blocks
from dlrm_jax.attention.jagged import Sequences

TIME_BUCKETS = 128
"""Buckets of `time_bucket`, whose last one takes all longer times."""

_OCTAVE = 0.301  # ln of the ratio of the bounds of a bucket, as in HSTU's reference


class Bias(NamedTuple):
    """Learned bias of HSTU's attention (arXiv 2402.17152, section 3.1).

    The reference has it as ``RelativeBucketedTimeAndPositionBasedBias``. Tokens look back alone, so
    distances aren't negative.

    Attributes:
        by_distance: bias of the token so many places before, [L] from 0 on; those farther away
            take the last one.
        by_time: bias of a bucket of time between a key's token and the one after the query's,
            [`TIME_BUCKETS` + 1]; None without times.
    """

    by_distance: Float[Array, " L"]
    by_time: Float[Array, " Z"] | None = None


def time_bucket(seconds: Int32[Array, "*_"]) -> Int32[Array, "*_"]:
    """The bucket of a time: ⌊ln(max(|t|, 1)) / 0.301⌋, at most `TIME_BUCKETS`."""
    length = jnp.maximum(jnp.abs(seconds.astype(jnp.float32)), 1)
    return jnp.minimum(jnp.log(length) / _OCTAVE, TIME_BUCKETS).astype(jnp.int32)


def block_bias(bias: Bias, sequences: Sequences, chunk: Chunk) -> Float[Array, "P q k"]:
    """The bias of pairs of blocks.

    Args:
        bias: bias; without times, that by distance alone.
        sequences: sequences of the tokens.
        chunk: pairs of blocks.
    """
    found = _diagonals(bias.by_distance[_distances(bias, chunk)])
    if bias.by_time is None:
        return found
    return found + bias.by_time[_buckets(sequences, chunk)]


def add_bias_gradient(
    sums: Bias, of_scores: Float[Array, "P q k"], sequences: Sequences, chunk: Chunk
) -> Bias:
    """Adds the gradient of a bias, given that of `block_bias`'s result."""
    of_distance = _sums_of_diagonals(of_scores).astype(sums.by_distance.dtype)
    by_distance = sums.by_distance.at[_distances(sums, chunk)].add(of_distance)
    if sums.by_time is None:
        return Bias(by_distance)
    own = of_scores.astype(sums.by_time.dtype)
    return Bias(by_distance, sums.by_time.at[_buckets(sequences, chunk)].add(own))


def _distances(bias: Bias, chunk: Chunk) -> Int[Array, "P d"]:
    """The 2 `BLOCK` - 1 distances that there are in a pair, those of a diagonal each."""
    first = (chunk.queries - chunk.keys) * BLOCK
    apart = first[:, None] + jnp.arange(BLOCK - 1, -BLOCK, -1)
    return jnp.clip(apart, 0, len(bias.by_distance) - 1)


def _buckets(sequences: Sequences, chunk: Chunk) -> Int32[Array, "P q k"]:
    """Buckets of the times between keys' tokens and those that follow the queries'."""
    assert sequences.times is not None
    assert sequences.next_times is not None
    following, own = blocks(sequences.next_times), blocks(sequences.times)
    return time_bucket(following[chunk.queries][:, :, None] - own[chunk.keys][:, None, :])


def _diagonals(values: Float[Array, "P d"]) -> Float[Array, "P q k"]:
    """Matrices with values[`BLOCK` - 1 - q + k] at q, k."""
    size = BLOCK
    # Rows of one number less than are repeated: each is shifted by one against the one before.
    repeated = jnp.tile(jnp.pad(values, [(0, 0), (0, 1)]), (1, size))[:, : size * (2 * size - 1)]
    return repeated.reshape(len(values), size, 2 * size - 1)[:, :, size - 1 :]


def _sums_of_diagonals(matrices: Float[Array, "P q k"]) -> Float[Array, "P d"]:
    """The sums of the numbers that `_diagonals` lays out from one value."""
    size = BLOCK
    padded = jnp.pad(matrices, [(0, 0), (0, 0), (size - 1, 0)]).reshape(len(matrices), -1)
    padded = jnp.pad(padded, [(0, 0), (0, size)])
    return padded.reshape(len(matrices), size, 2 * size).sum(1)[:, : 2 * size - 1]
