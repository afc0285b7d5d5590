"""Sums of the gradients of equal rows, in the way of the backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlrm_jax.embedding.bag_cotangents import BlockCotangents, Sums, expand
from dlrm_jax.embedding.row_runs import runs_of, sum_runs
from dlrm_jax.embedding.row_update import RowOrder

RowSums = Literal["scatter", "sorted", "compacted"]
"""Additions to the place of each row one by one; sums over ids in the order of their rows; or these
with each row's sum moved to the front, so that rows ascend."""


def sum_all(
    size: int,
    blocks: Sequence[BlockCotangents],
    row_sums: RowSums,
    order: Int[Array, " K"] | None = None,
) -> tuple[Float[Array, "R d"], Int[Array, " R"]]:
    """The gradient of each row of a slab, and whether it is touched.

    Args:
        size: number R of rows; row numbers from it on mean "no row".
        blocks: rows, id weights and cotangents of bags.
        row_sums: way to sum, see `backend.Backend`.
        order: order of all K ids in which those of a row lie side by side; None if it isn't known.
    """
    if row_sums != "scatter":
        ascend = row_sums == "compacted"
        rows, gradients = sum_runs(size, runs_of(blocks, order), ascend)
        totals = jnp.zeros((size, gradients.shape[1]), gradients.dtype)
        known: Any = {"mode": "drop", "unique_indices": True, "indices_are_sorted": ascend}
        totals = totals.at[rows].set(gradients, **known)
        return totals, jnp.zeros(size, jnp.int32).at[rows].set(1, **known)
    rows, gradients = expand(blocks)
    totals = jnp.zeros((size, gradients.shape[1]), gradients.dtype)
    totals = totals.at[rows].add(gradients, mode="drop")
    return totals, jnp.zeros(size, jnp.int32).at[rows].max(1, mode="drop")


def sum_touched(size: int, blocks: Sequence[BlockCotangents], row_sums: RowSums) -> Sums:
    """The different rows of bags and the gradient of each; the arguments are those of `sum_all`.

    There are as many places as ids. Those that no row needs have numbers of their own from ``size``
    on, so that no two of the returned rows are equal, and zeros. Compacted, all numbers ascend.
    """
    if row_sums != "scatter":
        return sum_runs(size, runs_of(blocks), row_sums == "compacted")
    rows, gradients = expand(blocks)
    index = jnp.arange(rows.size, dtype=jnp.int32)
    representative = dedup(size, rows)
    totals = jnp.zeros_like(gradients).at[representative].add(gradients, mode="drop")
    return jnp.where(representative == index, rows, size + index), totals


def order_of_sums(row_sums: RowSums) -> RowOrder:
    """What is known of the rows of `sum_touched`."""
    return "ascending" if row_sums == "compacted" else "distinct"


# Entries of the scratch per occurrence; with as many, nearly all rows have an entry alone.
_ENTRIES = 8
_GOLDEN = np.uint32(2654435769)  # 2³² over the golden ratio, as in Fibonacci hashing


def dedup(size: int, rows: Int[Array, " K"]) -> Int[Array, " K"]:
    """The index of one representative for each occurrence of a row, [K]; K for "no row".

    It doesn't sort. Every occurrence writes its index to the entry of a scratch that its row is
    hashed to, and reads the entry back. If the index there, whichever won, has the same row, it
    represents the row. The few others try again with another hash; each round settles at least one
    row of each entry in use.

    Args:
        size: number of rows of the slab; row numbers from it on mean "no row".
        rows: row number of each occurrence, [K], not negative.
    """
    count = rows.size
    bits = min(math.ceil(math.log2(max(_ENTRIES * count, 2))), 30)  # numbers of entries are int32
    index = jnp.arange(count, dtype=jnp.int32)
    nothing = jnp.full(count, count, jnp.int32)

    def settle(entries: int, entry: Int[Array, " K"], found: Int[Array, " K"]) -> Array:
        scratch = jnp.zeros(entries, jnp.int32).at[entry].set(index, mode="drop")
        winner = scratch.at[entry].get(mode="fill", fill_value=count)
        same = rows.at[winner].get(mode="fill", fill_value=-1) == rows
        return jnp.where(same, winner, found)

    if size <= 2**bits:  # each row has an entry of its own
        return settle(size, rows, nothing)

    def is_open(found: Int[Array, " K"]) -> Array:
        return (found == count) & (rows < size)

    def next_round(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        multiplier, found = carry
        hashed = ((rows.astype(jnp.uint32) * multiplier) >> np.uint32(32 - bits)).astype(jnp.int32)
        entry = jnp.where(is_open(found), hashed, 2**bits)
        return multiplier * _GOLDEN, settle(2**bits, entry, found)

    start = (jnp.asarray(_GOLDEN), nothing)
    return jax.lax.while_loop(lambda carry: is_open(carry[1]).any(), next_round, start)[1]
