"""The parts of a step on the mesh: what one device does, with how its arrays are split."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Integer

from dlrm_jax.embedding import exchange, row_gradients
from dlrm_jax.embedding.kernel_dispatch import has_native_lookup
from dlrm_jax.embedding.layout import Layout, Slab
from dlrm_jax.embedding.optimizer import mean_of_columns
from dlrm_jax.embedding.reshard import slab_spec, slot_ndims
from dlrm_jax.embedding.rounding import bits_of_rows, round_randomly
from dlrm_jax.embedding.row_update import update_rows
from dlrm_jax.embedding.state import EmbeddingState, Residuals, RowGradients, SparseCotangents
from dlrm_jax.embedding.table import Lookup
from dlrm_jax.mesh import BATCH, DATA, MODEL, PER_DEVICE


def lookup(
    mesh: Mesh,
    layout: Layout,
    lookups: Sequence[Lookup],
    comm_dtype: str | None,
    state: EmbeddingState,
    ids: Int[Array, "B C"],
    id_weights: Float[Array, "B C"] | None,
    native: bool,
) -> tuple[dict[str, Float[Array, "B *_"]], Residuals]:
    """See `EmbeddingCollection.lookup`."""

    def run(slabs: dict[str, Array], ids: Array, id_weights: Array | None):
        pooled, rows, at_rows, denominators = exchange.lookup(
            layout, lookups, slabs, ids, id_weights, mesh.shape[MODEL], comm_dtype, native
        )
        return pooled, Residuals(_per_device(rows), at_rows and _per_device(at_rows), denominators)

    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=({slab.name: slab_spec(slab) for slab in layout.slabs}, BATCH, BATCH),
        out_specs=(BATCH, Residuals(PER_DEVICE, PER_DEVICE, BATCH)),  # pyright: ignore
        # The check can't know what native kernels do.
        check_vma=not (native and any(map(has_native_lookup, layout.blocks))),
    )(state.tables, ids, id_weights)


def send_cotangents(
    mesh: Mesh,
    layout: Layout,
    lookups: Sequence[Lookup],
    comm_dtype: str | None,
    residuals: Residuals,
    cotangents: Mapping[str, Float[Array, "B *_"]],
) -> SparseCotangents:
    """See `EmbeddingCollection.back`."""
    trained = [i for i, block in enumerate(layout.blocks) if block.slab.optimizer]
    blocks = [layout.blocks[i] for i in trained]

    def run(denominators: dict[str, Array], cotangents: dict[str, Array]) -> tuple[Array, ...]:
        return _per_device(
            exchange.send_cotangents(lookups, blocks, denominators, cotangents, comm_dtype)
        )

    sent = jax.shard_map(run, mesh=mesh, in_specs=(BATCH, BATCH), out_specs=PER_DEVICE)
    return SparseCotangents(
        tuple(residuals.rows[i] for i in trained),
        None if residuals.id_weights is None else tuple(residuals.id_weights[i] for i in trained),
        sent(residuals.denominators, dict(cotangents)),
    )


def coalesce(
    mesh: Mesh,
    layout: Layout,
    comm_dtype: str | None,
    cotangents: SparseCotangents,
    sum_duplicates: bool,
    natively: Container[str],
) -> RowGradients:
    """See `EmbeddingCollection.coalesce`."""
    trained = [block for block in layout.blocks if block.slab.optimizer]
    slabs = [slab for slab in layout.slabs if slab.optimizer]
    stacked = cotangents.rows[0].ndim - 5 if cotangents.rows else 0

    def run(cotangents: SparseCotangents) -> dict[str, tuple[row_gradients.BlockCotangents, ...]]:
        def local(x: Array) -> Array:
            return x.reshape(-1, *x.shape[-2:])

        items: dict[str, list[row_gradients.BlockCotangents]] = {slab.name: [] for slab in slabs}
        for i, block in enumerate(trained):
            id_weights = None if cotangents.id_weights is None else local(cotangents.id_weights[i])
            items[block.slab.name].append(
                (local(cotangents.rows[i]), id_weights, local(cotangents.cotangents[i]))
            )
        return row_gradients.coalesce(
            slabs, items, mesh.shape, sum_duplicates, comm_dtype, natively
        )

    bags = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=PartitionSpec(*[None] * stacked, DATA, MODEL),
        out_specs={slab.name: _per_shard(slab) for slab in slabs},
        # Copies are made equal by collectives, or there is one copy, and no collective that
        # could show it to the check.
        check_vma=False,
    )(cotangents)
    summed = all(
        sum_duplicates or (slab.needs_sums(False) and slab.name not in natively) for slab in slabs
    )
    return RowGradients(bags, summed)


def apply(
    mesh: Mesh,
    layout: Layout,
    state: EmbeddingState,
    gradients: RowGradients,
    step: Integer[Array, ""] | int,
    natively: Container[str],
) -> EmbeddingState:
    """See `EmbeddingCollection.apply`."""
    slabs = {slab.name: slab for slab in layout.slabs if slab.optimizer}
    optimizers = {slab.name: slab.optimizer for slab in layout.slabs if slab.optimizer}
    table_specs = {name: slab_spec(slab) for name, slab in slabs.items()}
    slot_specs = {
        name: {slot: slab_spec(slab, ndim) for slot, ndim in slot_ndims(slab).items()}
        for name, slab in slabs.items()
    }
    per_shard = {name: _per_shard(slab) for name, slab in slabs.items()}

    def run(tables, slots, bags, step):
        new_tables, new_slots = {}, {}
        for name, slab in slabs.items():
            args = tables[name], slots[name], bags[name], step
            new_tables[name], new_slots[name] = (
                optimizers[name].native_update(*args) if name in natively else _update(slab, *args)
            )
        return new_tables, new_slots

    tables, slots = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(table_specs, slot_specs, per_shard, PartitionSpec()),
        out_specs=(table_specs, slot_specs),
        # Where columns are split, all shards have the same rows with the same state, which
        # the check can't know; nor does it know what native updates and optax transforms do.
        check_vma=not any(
            slab.split == "columns"
            or name in natively
            or "scalar" in optimizers[name].slots.values()
            for name, slab in slabs.items()
        ),
    )(
        {name: state.tables[name] for name in slabs},
        {name: state.slots[name] for name in slabs},
        gradients.bags,
        jnp.asarray(step),
    )
    return EmbeddingState(state.tables | tables, state.slots | slots)


def _update(
    slab: Slab,
    table: Array,
    slots: dict[str, Array],
    bags: Sequence[row_gradients.BlockCotangents],
    step: Array,
) -> tuple[Array, dict[str, Array]]:
    """One device's part of a slab, updated."""
    assert slab.optimizer is not None
    rows, gradients = row_gradients.expand(bags)

    def mean_of_all_columns(x: Array) -> Array:
        return jax.lax.pmean(mean_of_columns(x), MODEL)

    def rounded(values: Array) -> Array:
        return round_randomly(values, bits_of_rows(slab, rows, step))

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
    )


def _per_shard(slab: Slab) -> PartitionSpec:
    """How the rows that are updated, and their gradients, lie: those of each shard in turn."""
    return PartitionSpec(MODEL) if slab.sharded else PartitionSpec()


def _per_device(arrays: Sequence[Array]) -> tuple[Array, ...]:
    """One device's arrays as its parts of [D, M, ...] ones."""
    return tuple(x[None, None] for x in arrays)
