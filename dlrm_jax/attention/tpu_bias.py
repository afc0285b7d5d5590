"""The bias of attention inside a Pallas kernel for TPUs; `attention_bias` says what it is.

The bias by distance is the same along the diagonals of a pair of blocks. A row of numbers becomes a
matrix of such diagonals by a rotation whose number of lanes grows from row to row, and the sums of
a matrix along its diagonals by the rotation back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from dlrm_jax.attention.attention_bias import Bias, time_bucket
from dlrm_jax.attention.tpu_blocks import BLOCK

_BUCKETS = BLOCK  # one a lane; the longest time of an int32 is in bucket 71


class Biases(NamedTuple):
    """A bias as kernels read it, or its gradient as they sum it.

    Attributes:
        windows: biases of the distances in a pair of blocks that are δ blocks apart, [D, 2 `BLOCK`]
            by δ: distance δ · `BLOCK` - c at c < `BLOCK`, and δ · `BLOCK` + 2 `BLOCK` - c behind
            it. The last row is that of all pairs farther apart.
        by_time: bias of a bucket, [1, 128], or its gradient in parts, [128, `BLOCK`]; None without.
    """

    windows: Any
    by_time: Any


def biases_of(bias: Bias, blocks: int) -> Biases:
    """A bias as kernels read it.

    Args:
        bias: bias by distance and time.
        blocks: number of blocks of tokens.
    """
    windows = bias.by_distance[_distances(bias, blocks)].astype(jnp.float32)
    if bias.by_time is None:
        return Biases(windows, None)
    return Biases(windows, bias.by_time[None, :_BUCKETS].astype(jnp.float32))


def sums_for(bias: Biases) -> Biases:
    """Shapes of the sums that a kernel adds up for a bias's gradient."""
    by_time = None if bias.by_time is None else jax.ShapeDtypeStruct((_BUCKETS, BLOCK), "float32")
    return Biases(jax.ShapeDtypeStruct(bias.windows.shape, "float32"), by_time)


def gradient_of(bias: Bias, sums: Biases, blocks: int) -> Bias:
    """The gradient of a bias.

    Args:
        bias: bias.
        sums: sums that a kernel has added up.
        blocks: number of blocks of tokens.
    """
    places = _distances(bias, blocks)
    by_distance = jnp.zeros_like(bias.by_distance)
    by_distance = by_distance.at[places].add(sums.windows.astype(by_distance.dtype))
    if bias.by_time is None:
        return Bias(by_distance)
    by_time = jnp.zeros_like(bias.by_time)
    return Bias(by_distance, by_time.at[:_BUCKETS].set(sums.by_time.sum(1).astype(by_time.dtype)))


def _distances(bias: Bias, blocks: int) -> Int32[Array, "D c"]:
    """The distances of `Biases.windows`, at most the last that has a bias of its own."""
    last = len(bias.by_distance) - 1
    rows = min(blocks, last // BLOCK + 3)
    lane = jnp.arange(2 * BLOCK, dtype=jnp.int32)
    back = jnp.where(lane < BLOCK, lane, lane - 2 * BLOCK)
    apart = jnp.arange(rows, dtype=jnp.int32)[:, None] * BLOCK - back
    return jnp.clip(apart, 0, last)


class PairBias:
    """The bias of a pair of blocks.

    Args:
        biases: references to biases in the memory of the kernel.
        apart: number of blocks from the keys to the queries.
        next_times: time of the token that follows each query's, [1, `BLOCK`]; None without times.
        times: time of each key's token, [1, `BLOCK`]; None without times.

    Attributes:
        values: the bias of each key for each query, [`BLOCK`, `BLOCK`].
    """

    def __init__(self, biases: Biases, apart: Any, next_times: Any, times: Any):
        self._row = pl.ds(jnp.minimum(apart, biases.windows.shape[0] - 1), 1)
        row = jnp.broadcast_to(biases.windows[self._row, :], (BLOCK, 2 * BLOCK))
        self.values = _moved(row, 1)[:, :BLOCK]
        if biases.by_time is not None:
            self._buckets = time_bucket(column(next_times[...]) - times[...])
            by_time = jnp.broadcast_to(biases.by_time[...], (BLOCK, _BUCKETS))
            self.values += jnp.take_along_axis(by_time, self._buckets, axis=1)

    def add_gradient(self, sums: Biases, of_values: Float[Array, "q k"]) -> None:
        """Adds the gradient of the biases, given that of their values.

        Args:
            sums: references to what `sums_for` describes.
            of_values: gradient of `values`.
        """
        wide = jnp.concatenate([of_values, jnp.zeros_like(of_values)], axis=1)
        sums.windows[self._row, :] += _moved(wide, -1).sum(0, keepdims=True)
        if sums.by_time is None:
            return

        def add(bucket: Any, _: None) -> None:
            own = jnp.where(self._buckets == bucket, of_values, 0)
            sums.by_time[pl.ds(bucket, 1), :] += own.sum(0, keepdims=True)

        # Far from the diagonal few buckets occur: they are logarithmic.
        first, last = self._buckets.min(), self._buckets.max()
        jax.lax.fori_loop(first, last + 1, add, None)


def _moved(rows: Float[Array, "q c"], lanes: int) -> Float[Array, "q c"]:
    """Rows rotated, the first by nothing and each next one by so many lanes more, 1 or -1."""
    row = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
    for bit in range(BLOCK.bit_length() - 1):  # of the number of lanes; all TPUs can do this
        moved = pltpu.roll(rows, (lanes << bit) % rows.shape[1], 1)
        rows = jnp.where((row >> bit) & 1 == 1, moved, rows)
    return rows


def column(row: Int32[Array, "1 b"]) -> Int32[Array, "b b"]:
    """A row of numbers as the column that it is for each key."""
    return jnp.broadcast_to(row, (BLOCK, BLOCK)).T
