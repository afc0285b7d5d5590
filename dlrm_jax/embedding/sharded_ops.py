"""Lookups and updates on the mesh: `PerDevice`'s methods, mapped over it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, ArrayLike, Float, Int

from dlrm_jax.embedding.kernel_dispatch import has_native_lookup
from dlrm_jax.embedding.per_device import PerDevice
from dlrm_jax.embedding.reshard import slot_ndims
from dlrm_jax.embedding.row_update import checked_step
from dlrm_jax.embedding.state import EmbeddingState, Residuals, RowGradients, SparseCotangents
from dlrm_jax.errors import UserError


def lookup(
    device: PerDevice,
    state: EmbeddingState,
    ids: Int[Array | np.ndarray, "B C"],
    id_weights: Float[Array | np.ndarray, "B C"] | None,
) -> tuple[dict[str, Float[Array, "B *_"]], Residuals]:
    """See `EmbeddingCollection.lookup`. The optimizers' state isn't read."""
    device.layout.check(state)
    batch, per_device = device.axes.batch, device.axes.per_device

    def run(tables: dict[str, Array], ids: Array, id_weights: Array | None) -> Any:
        return device.lookup(EmbeddingState(tables, {}), ids, id_weights)

    return jax.shard_map(
        run,
        mesh=device.axes.mesh,
        in_specs=(device.state_specs.tables, batch, batch),
        out_specs=(batch, Residuals(per_device, per_device, batch, per_device)),  # pyright: ignore
        # The check can't know what native kernels do.
        check_vma=not (device.native and any(map(has_native_lookup, device.layout.blocks))),
    )(state.tables, *device.axes.place((ids, id_weights), batch))


def send_cotangents(
    device: PerDevice, residuals: Residuals, cotangents: Mapping[str, Float[Array, "B *_"]]
) -> SparseCotangents:
    """See `EmbeddingCollection.send_cotangents`."""
    names = {lookup.name for lookup in device.lookups}
    if cotangents.keys() != names:
        raise UserError(
            f"cotangents: expected one for each of the lookups {', '.join(sorted(names))}; "
            f"got {', '.join(sorted(cotangents)) or 'none'}"
        )
    _check_shapes(device, residuals, cotangents)
    batch, per_device = device.axes.batch, device.axes.per_device
    return jax.shard_map(
        device.send_cotangents,
        mesh=device.axes.mesh,
        in_specs=(Residuals(per_device, per_device, batch, per_device), batch),  # pyright: ignore
        out_specs=per_device,
    )(residuals, device.axes.place(dict(cotangents), batch))


def _check_shapes(device: PerDevice, residuals: Residuals, cotangents: Mapping[str, Array]) -> None:
    rows: Any = residuals.rows
    # The owners have the rows of a group, or, without an exchange, of a device.
    batch = math.prod(rows[0].shape[:3])
    if device.layout.blocks[0].slab.sharded:
        batch //= device.axes.shards
    for lookup, bags in zip(device.lookups, device.layout.bags, strict=True):
        sequence = (len(bags),) if lookup.pooling == "none" else ()
        expected = (batch, *sequence, device.layout.table(lookup.table).dim)
        got = np.shape(cotangents[lookup.name])
        if got != expected:
            raise UserError(
                f"cotangents: expected that of lookup {lookup.name} to have the shape of its "
                f"result, {expected}, got {got}"
            )


def coalesce(device: PerDevice, cotangents: SparseCotangents, sum_duplicates: bool) -> RowGradients:
    """See `EmbeddingCollection.coalesce`. Stacked micro-batches lie along the first axis."""
    stacked = cotangents.rows[0].ndim - 5 if cotangents.rows else 0
    for asked, _ in cotangents.requests.values():
        stacked = asked.rows.ndim - 3
    return jax.shard_map(
        lambda cotangents: device.coalesce(cotangents, sum_duplicates),
        mesh=device.axes.mesh,
        in_specs=PartitionSpec(*[None] * stacked, *device.axes.per_device),
        out_specs=_gradient_specs(device, device.sums(sum_duplicates)),
        # Collectives make copies equal. A single copy needs no collective, which the check needs.
        check_vma=False,
    )(cotangents)


def apply(
    device: PerDevice,
    state: EmbeddingState,
    gradients: RowGradients,
    step: ArrayLike,
    rate_factor: ArrayLike | None = None,
) -> EmbeddingState:
    """See `EmbeddingCollection.apply`. Frozen tables aren't passed."""
    device.layout.check(state)
    slabs, specs = device.trained_slabs, device.state_specs
    specs = dataclasses.replace(specs, tables={name: specs.tables[name] for name in slabs})

    updated = jax.shard_map(
        device.apply,
        mesh=device.axes.mesh,
        in_specs=(
            specs,
            _gradient_specs(device, gradients.summed),
            PartitionSpec(),
            PartitionSpec(),
        ),
        out_specs=specs,
        # If columns are split, all shards have the same row state, which the check can't know; nor
        # does it know what native updates and optax transforms do. Fully sharded slabs are summed
        # here, see `coalesce`.
        check_vma=not any(
            slab.split == "columns"
            or slab.fully_sharded
            or name in device.native_slabs
            or 0 in slot_ndims(slab).values()
            for name, slab in slabs.items()
        ),
    )(
        EmbeddingState({name: state.tables[name] for name in slabs}, state.slots, specs.layout),
        dataclasses.replace(gradients, squares=None),
        checked_step(step),
        None if rate_factor is None else jnp.asarray(rate_factor),
    )
    tables, slots = state.tables | updated.tables, state.slots | updated.slots
    return dataclasses.replace(state, tables=tables, slots=slots)


def row_specs(device: PerDevice) -> dict[str, PartitionSpec]:
    """The split of touched rows and their gradients: over the shards."""
    model = PartitionSpec(device.axes.model)
    slabs = device.exchanged_slabs.items()
    return {name: model if slab.sharded else PartitionSpec() for name, slab in slabs}


def _gradient_specs(device: PerDevice, summed: bool) -> Any:
    """The split of `RowGradients`: the requests of fully sharded slabs are at the samples."""
    return RowGradients(row_specs(device), summed, device.axes.per_device, PartitionSpec())
