"""The update of a slab's rows on one device, by kernels or in XLA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
from jaxtyping import Array

from dlrm_jax.backend import backend_of
from dlrm_jax.embedding.bag_cotangents import BlockCotangents, expand
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.optimizer import at_rate
from dlrm_jax.embedding.reshard import shard_axes
from dlrm_jax.embedding.rounding import bits_of_rows, round_randomly
from dlrm_jax.embedding.row_optimizer import mean_of_columns
from dlrm_jax.embedding.row_runs import runs_of
from dlrm_jax.embedding.row_update import RowOrder, update_rows
from dlrm_jax.embedding.slab import Slab


def update_slab(
    slab: Slab,
    axes: MeshAxes,
    table: Array,
    slots: dict[str, Array],
    blocks: Sequence[BlockCotangents],
    step: Array,
    rate_factor: Array | None,
    *,
    kernels: Literal["xla", "native", "fused"],
    order: RowOrder,
) -> tuple[Array, dict[str, Array]]:
    """Updates rows; call it in a `jax.shard_map` over the axes.

    Args:
        slab: trained slab.
        axes: axes of the mesh.
        table: rows of this device.
        slots: optimizer slots of these rows.
        blocks: rows and gradients of bags.
        step: number of updates done before this one.
        rate_factor: factor of the learning rate; None for 1.
        kernels: kernels that update it, which sum the gradients of equal rows themselves, or XLA.
            Fused ones of Pallas sort the ids, so that sums are better updated by XLA.
        order: knowledge of the rows of the blocks.
    """
    assert slab.optimizer is not None
    if kernels == "native":
        return at_rate(slab.optimizer, rate_factor).native_update(table, slots, blocks, step)
    if kernels == "fused":
        backend = backend_of(axes.mesh)
        given = slab.optimizer, table, slots, runs_of(blocks), step
        if backend.row_kernels == "mosaic":
            from dlrm_jax.embedding import fused_update_tpu  # Pallas takes a second to import

            return fused_update_tpu.update_runs(*given, rate_factor, backend.interprets_kernels)
        from dlrm_jax.embedding import fused_update_gpu

        emulated = backend.interprets_kernels
        return fused_update_gpu.update_runs(*given, slab.dtype, rate_factor, emulated)
    rows, gradients = expand(blocks)

    def mean_of_all_columns(x: Array) -> Array:
        return jax.lax.pmean(mean_of_columns(x), axes.model)

    def rounded(values: Array) -> Array:
        over = shard_axes(slab, axes)
        shard = jax.lax.axis_index(over) if over else 0
        return round_randomly(values, bits_of_rows(slab, rows, step, shard))

    return update_rows(
        slab.optimizer,
        table,
        slots,
        rows,
        gradients,
        step,
        mean_of_all_columns if slab.split == "columns" else mean_of_columns,
        slab.dtype,
        rounded if slab.rounds_randomly else None,
        rate_factor,
        order,
    )
