"""The gradient of the L2 penalty of rows, λ w, on the device that stores them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.embedding import packed_rows, row_split
from dlrm_jax.embedding.bag_cotangents import BlockCotangents, Sums, one_by_one
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.storage_dtype import decode


def penalized(
    slab: Slab, table: Shaped[Array, "_ _"], sums: Sums, strength: float | Float[Array, ""]
) -> tuple[BlockCotangents, ...]:
    """The gradients of rows by the loss with its penalty.

    Args:
        slab: slab of the rows.
        table: rows of this device before the update.
        sums: different rows, and their gradients by the loss.
        strength: factor λ of the penalty.
    """
    rows, gradients = sums
    stored = packed_rows.take(table, rows, slab.width)
    values = decode(stored, slab.dtype).astype(slab.vector_dtype)
    return one_by_one((rows, gradients + (strength * values).astype(gradients.dtype)))


def with_all_rows(
    slab: Slab, sums: Sums, shard: Int[Array, ""]
) -> tuple[Int[Array, " R"], Float[Array, "R d"]]:
    """The gradients of all rows that a device stores; those of untouched rows are 0."""
    rows, gradients = sums
    totals = jnp.zeros((slab.rows, gradients.shape[1]), gradients.dtype)
    return numbers_of_all(slab, shard), totals.at[rows].add(
        gradients, mode="drop", unique_indices=True
    )


def numbers_of_all(slab: Slab, shard: Int[Array, ""]) -> Int[Array, " R"]:
    """The numbers of all rows that a device stores; numbers past the end for padding.

    Args:
        slab: slab of the rows.
        shard: number of the device among those that the slab is split over; 0 for a copy.
    """
    number = jnp.arange(slab.rows, dtype=jnp.int32)
    stored = jnp.asarray(_rows_of_shards(slab))[shard]
    return jnp.where(number < stored, number, slab.rows + number)


def _rows_of_shards(slab: Slab) -> np.ndarray:
    """The number of rows that each shard stores; padding follows them."""
    if slab.fully_sharded:
        total = sum(table.rows for table in slab.tables.values())
        counts = [row_split.count(total, slab.shards, k) for k in range(slab.shards)]
        return np.array(counts, np.int32)
    stored = np.zeros(slab.shards, np.int32)
    for piece, start in slab.on_shards:
        end = start + piece.rows(slab.tables[piece.table].rows)
        stored[piece.shard or 0] = max(stored[piece.shard or 0], end)
    return stored
