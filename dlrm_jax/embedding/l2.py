"""The L2 penalty of tables, λ/2 Σ w²: its gradient, λ w, beside that of the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.embedding.collection import EmbeddingCollection
from dlrm_jax.embedding.row_gradients import BlockCotangents, Sums, expand, one_by_one
from dlrm_jax.embedding.sharded_ops import row_specs
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import EmbeddingState, RowGradients
from dlrm_jax.embedding.storage_dtype import decode
from dlrm_jax.errors import UserError


def add_l2(
    collection: EmbeddingCollection,
    state: EmbeddingState,
    gradients: RowGradients,
    strength: float,
    whole_tables: bool = False,
) -> RowGradients:
    """Adds the gradient of the penalty to that of the loss, once for each row; in a jitted step.

    Args:
        collection: collection of the tables; frozen ones have no penalty.
        state: tables before the update.
        gradients: gradients of the loss, of ``collection.coalesce(..., sum_duplicates=True)``.
        strength: factor λ of the penalty.
        whole_tables: whether all rows have the penalty, and are updated, instead of the touched
            ones. The step then reads and writes whole tables and their optimizer state, and needs
            memory for a gradient of each row.

    Raises:
        UserError: the gradients of equal rows aren't summed.
    """
    if not gradients.summed:
        raise UserError("an L2 penalty needs coalesce(..., sum_duplicates=True)")
    device = collection.per_device
    if gradients.requests:
        slabs = [device.trained_slabs[name] for name in gradients.requests]
        names = ", ".join(table for slab in slabs for table in slab.tables)
        raise UserError(
            f"an L2 penalty needs the summed gradients of rows, which fully sharded tables have "
            f"only in the update; got {names}; place them otherwise"
        )
    slabs, tables, rows = device.exchanged_slabs, device.state_specs.tables, row_specs(device)

    def run(
        tables: dict[str, Array], blocks: dict[str, tuple[BlockCotangents, ...]]
    ) -> dict[str, tuple[BlockCotangents, ...]]:
        shard = jax.lax.axis_index(device.axes.model)
        found: dict[str, tuple[BlockCotangents, ...]] = {}
        for name, slab in slabs.items():
            sums = expand(blocks[name])
            if whole_tables:
                stored = jnp.asarray(_rows_of_shards(slab))
                sums = _of_all_rows(slab, sums, stored[shard if slab.sharded else 0])
            found[name] = one_by_one(_penalized(slab, tables[name], sums, strength))
        return found

    added = jax.shard_map(
        run,
        mesh=device.axes.mesh,
        in_specs=({name: tables[name] for name in slabs}, rows),
        out_specs=rows,
        check_vma=False,  # as in `sharded_ops.coalesce`
    )({name: state.tables[name] for name in slabs}, gradients.blocks)
    return RowGradients(added, gradients.summed)


def _penalized(slab: Slab, table: Shaped[Array, "R d"], sums: Sums, strength: float) -> Sums:
    rows, gradients = sums
    stored = table.at[rows].get(mode="fill", fill_value=0)
    values = decode(stored, slab.dtype).astype(slab.vector_dtype)
    return rows, gradients + (strength * values).astype(gradients.dtype)


def _of_all_rows(
    slab: Slab, sums: Sums, stored: Int[Array, ""]
) -> tuple[Int[Array, " R"], Float[Array, "R d"]]:
    """The gradients of all rows that a device stores; those of untouched rows are 0."""
    rows, gradients = sums
    totals = jnp.zeros((slab.rows, gradients.shape[1]), gradients.dtype)
    totals = totals.at[rows].add(gradients, mode="drop")
    number = jnp.arange(slab.rows, dtype=rows.dtype)
    return jnp.where(number < stored, number, slab.rows + number), totals


def _rows_of_shards(slab: Slab) -> np.ndarray:
    """The number of rows that each shard stores; padding follows them."""
    stored = np.zeros(slab.shards, np.int32)
    for piece, start in slab.on_shards:
        end = start + piece.rows(slab.tables[piece.table].rows)
        stored[piece.shard or 0] = max(stored[piece.shard or 0], end)
    return stored
