"""The ids of a slab's bags in the order of their rows, and sums over those of equal rows.

A sort brings the ids of a row together, into a *run*. Sums over runs need neither a scratch nor
additions to one place from many threads: their order is fixed by the ids, so that devices that sum
the same cotangents get the same bits. Shapes: N bags, K ids, d columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from dlrm_jax.embedding.bag_cotangents import BlockCotangents, Sums

# Ids that are summed by themselves, see `_sums_up_to`. Each is added up to as many times.
_BLOCK = 32
# Beyond the number of any row: pads ids to whole blocks.
_LAST = np.int32(2**31 - 1)


class RowRuns(NamedTuple):
    """The ids of a slab's bags in the order of their rows: equal rows form a run.

    Attributes:
        rows: row of each id, ascending. Numbers from the slab's end on mean "no row"; they come
            last unless the order was given.
        bags: bag of each id, a row of ``cotangents``; within a run in the order of the batch.
        weights: weight of each id; None for ones.
        cotangents: cotangents of all bags of all blocks, one behind the other.
    """

    rows: Int32[Array, " K"]
    bags: Int32[Array, " K"]
    weights: Float[Array, " K"] | None
    cotangents: Float[Array, "N d"]


def runs_of(blocks: Sequence[BlockCotangents], order: Int[Array, " K"] | None = None) -> RowRuns:
    """The runs of a slab's rows: one sort with one key of 32 bits, a radix sort on GPUs.

    Args:
        blocks: rows, id weights and cotangents of bags.
        order: order of all ids in which those of a row lie side by side, so that nothing is sorted;
            None if it isn't known.
    """
    rows = jnp.concatenate([rows.reshape(-1) for rows, _, _ in blocks])
    cotangents = jnp.concatenate([x.reshape(-1, x.shape[-1]) for _, _, x in blocks])
    first, numbers = 0, []
    for block, _, _ in blocks:
        count = block.shape[0] * block.shape[1]
        bag = jax.lax.broadcasted_iota(jnp.int32, (count, block.shape[2]), 0)
        numbers.append((first + bag).reshape(-1))
        first += count
    bags = jnp.concatenate(numbers)
    has_weights = any(weights is not None for _, weights, _ in blocks)
    if order is None and not has_weights:
        rows, bags = jax.lax.sort((rows, bags), num_keys=1, is_stable=True)
        return RowRuns(rows, bags, None, cotangents)
    if order is None:
        index = jnp.arange(rows.size, dtype=jnp.int32)
        # A sort of more than a key and one number isn't a radix sort.
        rows, order = jax.lax.sort((rows, index), num_keys=1, is_stable=True)
    else:
        rows = rows[order]
    if not has_weights:
        return RowRuns(rows, bags[order], None, cotangents)
    weights = jnp.concatenate(
        [
            jnp.ones(rows.size, cotangents.dtype) if weights is None else weights.reshape(-1)
            for rows, weights, _ in blocks
        ]
    )
    return RowRuns(rows, bags[order], weights[order], cotangents)


def sum_runs(size: int, runs: RowRuns, compact: bool) -> Sums:
    """The gradient of each row, at the place of its last id; zeros elsewhere.

    Args:
        size: number of rows of the slab; row numbers from it on mean "no row".
        runs: runs of the rows.
        compact: whether they are moved to the first places, so that rows ascend.

    Returns:
        The row of each place, or a number of its own from ``size`` on; and its gradient.
    """
    rows, count = runs.rows, runs.rows.size
    gradients = runs.cotangents[runs.bags]
    if runs.weights is not None:
        gradients = gradients * runs.weights[:, None]
    totals = _on_tpus(rows, gradients) if compact else _sums(rows, gradients)
    is_last = jnp.ones(count, bool).at[:-1].set(rows[1:] != rows[:-1]) & (rows < size)
    index = jnp.arange(count, dtype=jnp.int32)
    if not compact:
        return jnp.where(is_last, rows, size + index), jnp.where(is_last[:, None], totals, 0)
    kept = to_front(is_last)
    rows = jnp.where(kept < count, rows.at[kept].get(mode="fill", fill_value=0), size + index)
    return rows, totals.at[kept].get(mode="fill", fill_value=0)


def to_front(is_kept: Bool[Array, " K"]) -> Int32[Array, " K"]:
    """The places of those that are kept, in their order, and K for each of the others behind."""
    count, index = len(is_kept), jnp.arange(len(is_kept), dtype=jnp.int32)
    place = jnp.where(is_kept, jnp.cumsum(is_kept, dtype=jnp.int32) - 1, count + index)
    kept = jnp.full(count, count, jnp.int32)
    return kept.at[place].set(index, mode="drop", unique_indices=True)


def _on_tpus(rows: Int32[Array, " K"], x: Float[Array, "K d"]) -> Float[Array, "K d"]:
    """The sum of each run up to each of its places, by a kernel if the program is for TPUs."""
    from dlrm_jax.embedding import run_sums_tpu  # Pallas takes a second to import

    if len(rows) < run_sums_tpu.BLOCK:
        return _sums(rows, x)

    def by_kernel(rows: Array, x: Array) -> Array:
        index = jnp.arange(len(rows), dtype=jnp.int32)
        is_first = jnp.ones(len(rows), bool).at[1:].set(rows[1:] != rows[:-1])
        first = jax.lax.cummax(jnp.where(is_first, index, 0))
        return run_sums_tpu.sums_up_to(index - first, x)

    return jax.lax.platform_dependent(rows, x, tpu=by_kernel, default=_sums)


def _sums(rows: Int32[Array, " K"], x: Float[Array, "K d"]) -> Float[Array, "K d"]:
    padding = -len(rows) % _BLOCK if len(rows) > _BLOCK else 0
    rows = jnp.pad(rows, (0, padding), constant_values=_LAST)
    return _sums_up_to(rows, jnp.pad(x, ((0, padding), (0, 0))))[: len(x)]


def _sums_up_to(rows: Int32[Array, " K"], x: Float[Array, "K d"]) -> Float[Array, "K d"]:
    """The sum of each run up to each of its places.

    Blocks of ids are summed by themselves. What a run has in the blocks before comes from the same
    sums over the last places of blocks, of which there are far fewer. K is a multiple of a block,
    or not larger.
    """
    count, width = x.shape
    size = min(count, _BLOCK)
    block_rows, parts = rows.reshape(-1, size), x.reshape(-1, size, width)
    is_before = jnp.tril(jnp.ones((size, size), bool))
    added = (block_rows[:, :, None] == block_rows[:, None, :]) & is_before
    # Selected, not multiplied: a row's infinite gradient stays out of those of others. Compilers
    # make one loop of it, without an array of [K, block, d].
    sums = jnp.where(added[..., None], parts[:, None], 0).sum(axis=2)
    if len(parts) > 1:
        last, tails = block_rows[:, -1], sums[:, -1]
        padding = -len(last) % _BLOCK if len(last) > _BLOCK else 0
        carried = _sums_up_to(
            jnp.pad(last, (0, padding), constant_values=_LAST),
            jnp.pad(tails, ((0, padding), (0, 0))),
        )
        before = jnp.concatenate([jnp.zeros((1, width), x.dtype), carried[: len(last) - 1]])
        goes_on = block_rows[1:] == last[:-1, None]
        goes_on = jnp.concatenate([jnp.zeros((1, size), bool), goes_on])
        sums += jnp.where(goes_on[..., None], before[:, None], 0)
    return sums.reshape(x.shape)
