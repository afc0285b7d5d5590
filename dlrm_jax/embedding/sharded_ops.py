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

from dlrm_jax.embedding.kernel_dispatch import has_native_lookup, has_pallas_lookup
from dlrm_jax.embedding.per_device import PerDevice
from dlrm_jax.embedding.reshard import slot_ndims
from dlrm_jax.embedding.routing_key import check_routed
from dlrm_jax.embedding.row_update import checked_step
from dlrm_jax.embedding.state import EmbeddingState, RoutedIds, RowGradients, SparseCotangents
from dlrm_jax.errors import UserError


def route(
    device: PerDevice,
    ids: Int[Array | np.ndarray, "B C"],
    id_weights: Float[Array | np.ndarray, "B C"] | None,
) -> RoutedIds:
    """See `EmbeddingCollection.route`."""
    batch = device.axes.batch
    return jax.shard_map(
        device.route,
        mesh=device.axes.mesh,
        in_specs=(batch, batch),
        out_specs=routed_specs(device),
    )(*device.axes.place((ids, id_weights), batch))


def routed_specs(device: PerDevice) -> RoutedIds:
    """The split of routed ids: some arrays are of samples, the others have an item per device."""
    batch, per_device = device.axes.batch, device.axes.per_device
    return RoutedIds(per_device, per_device, batch, batch, per_device, device.routing)


def pool(
    device: PerDevice, state: EmbeddingState, routed: RoutedIds
) -> dict[str, Float[Array, "B *_"]]:
    """See `EmbeddingCollection.pool`. The optimizers' state isn't read."""
    device.layout.check(state)
    check_routed(routed, device.routing)
    return jax.shard_map(
        lambda tables, routed: device.pool(EmbeddingState(tables, {}), routed),
        mesh=device.axes.mesh,
        in_specs=(device.state_specs.tables, routed_specs(device)),
        out_specs=device.axes.batch,
        # The check can't know what kernels do.
        check_vma=not any(
            (device.native and has_native_lookup(block)) or has_pallas_lookup(block, device.backend)
            for block in device.layout.blocks
        ),
    )(state.tables, routed)


def send_cotangents(
    device: PerDevice, routed: RoutedIds, cotangents: Mapping[str, Float[Array, "B *_"]]
) -> SparseCotangents:
    """See `EmbeddingCollection.send_cotangents`."""
    check_routed(routed, device.routing)
    names = {lookup.name for lookup in device.lookups}
    if cotangents.keys() != names:
        raise UserError(
            f"cotangents: expected one for each of the lookups {', '.join(sorted(names))}; "
            f"got {', '.join(sorted(cotangents)) or 'none'}"
        )
    _check_shapes(device, routed, cotangents)
    batch, per_device = device.axes.batch, device.axes.per_device
    return jax.shard_map(
        device.send_cotangents,
        mesh=device.axes.mesh,
        in_specs=(routed_specs(device), batch),
        out_specs=per_device,
    )(routed, device.axes.place(dict(cotangents), batch))


def _check_shapes(device: PerDevice, routed: RoutedIds, cotangents: Mapping[str, Array]) -> None:
    rows: Any = routed.rows
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
            or name in device.native_slabs | device.fused_slabs
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
    one = PartitionSpec()
    return RowGradients(row_specs(device), one, summed, device.axes.per_device, one, one)
