"""The L2 penalty of tables, λ/2 Σ w²: its gradient, λ w, beside that of the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from dlrm_jax.embedding import fully_sharded
from dlrm_jax.embedding.bag_cotangents import BlockCotangents, expand
from dlrm_jax.embedding.collection import EmbeddingCollection
from dlrm_jax.embedding.row_penalty import penalized, with_all_rows
from dlrm_jax.embedding.sharded_ops import row_specs
from dlrm_jax.embedding.state import EmbeddingState, KnownRows, RowGradients, RowPenalty
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
    device, requests = collection.per_device, gradients.requests
    slabs, tables, rows = device.trained_slabs, device.state_specs.tables, row_specs(device)
    penalty, sharded = RowPenalty(jnp.asarray(strength), whole_tables), device.fully_sharded

    def run(
        tables: dict[str, Array],
        blocks: dict[str, tuple[BlockCotangents, ...]],
        requests: fully_sharded.Sums,
    ) -> tuple[dict[str, tuple[BlockCotangents, ...]], Array | None]:
        shard = jax.lax.axis_index(device.axes.model)
        found: dict[str, tuple[BlockCotangents, ...]] = {}
        for name, slab in device.exchanged_slabs.items():
            sums = expand(blocks[name])
            if whole_tables:
                sums = with_all_rows(slab, sums, shard if slab.sharded else jnp.zeros_like(shard))
            found[name] = penalized(slab, tables[name], sums, strength)
        return found, sharded.squares(requests, tables, penalty) if requests else None

    added, squares = jax.shard_map(
        run,
        mesh=device.axes.mesh,
        in_specs=({name: tables[name] for name in slabs}, rows, device.axes.per_device),
        out_specs=(rows, PartitionSpec()),
        check_vma=False,  # as in `sharded_ops.coalesce`
    )({name: state.tables[name] for name in slabs}, gradients.blocks, requests)
    known = {name: KnownRows("all") for name in added} if whole_tables else gradients.known
    return RowGradients(added, known, True, requests, squares, penalty if requests else None)
