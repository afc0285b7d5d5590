"""Whole tables into and out of a state, one slab at a time. Runs outside the step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from dlrm_jax.embedding import reshard
from dlrm_jax.embedding.by_value import optimizer_key
from dlrm_jax.embedding.layout import Layout, Slab
from dlrm_jax.embedding.optimizer import slot_shapes
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.embedding.storage_dtype import decode, encode
from dlrm_jax.embedding.table import Table
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import put_whole

Source = Callable[[Table], Mapping[str, Array | np.ndarray]]
Arrays = dict[str, Array]

Scalars = dict[Hashable, tuple[str, Mapping[str, np.ndarray]]]
"""By optimizer, the first table that has it and its optimizer slots of one number."""


def from_arrays(mesh: Mesh, layout: Layout, source: Source, seed: int) -> EmbeddingState:
    """See `EmbeddingCollection.from_arrays`."""
    tables, slots = {}, {}
    scalars: Scalars = {}
    # The largest first: what is held twice for a moment is then least on top of the rest.
    for slab in sorted(layout.slabs, key=lambda slab: -slab.rows):
        ndims = {"table": 2, **reshard.slot_ndims(slab)}
        shardings = {k: reshard.slab_sharding(mesh, slab, ndim) for k, ndim in ndims.items()}
        given = {name: _given(mesh, slab, table, source) for name, table in slab.tables.items()}
        _check_scalars(slab, given, scalars)
        leaves = jax.jit(functools.partial(_make_slab, mesh, slab, seed), out_shardings=shardings)(
            given
        )
        del given
        jax.block_until_ready(leaves)
        tables[slab.name] = leaves.pop("table")
        if slab.optimizer:
            slots[slab.name] = leaves
    return EmbeddingState(tables, slots)


def iter_arrays(
    layout: Layout, unpackers: Mapping[str, reshard.Unpacker], state: EmbeddingState
) -> Iterator[tuple[Table, str, Array]]:
    """See `EmbeddingCollection.iter_arrays`."""
    for slab in layout.slabs:
        leaves = {"table": state.tables[slab.name], **state.slots.get(slab.name, {})}
        for key, leaf in leaves.items():
            tables = unpackers[slab.name](leaf)
            while tables:
                name = next(iter(tables))
                # Without a name here, so that the caller decides how long an array lives.
                yield slab.tables[name], key, _released(tables.pop(name), slab, key)


def _released(held: Array, slab: Slab, key: str) -> Array:
    return _decoded(held, slab.dtype) if key == "table" and held.dtype != slab.dtype else held


_decoded = jax.jit(decode, static_argnames="dtype")


def array_specs(mesh: Mesh, slab: Slab, table: Table) -> dict[str, jax.ShapeDtypeStruct]:
    """See `EmbeddingCollection.array_specs`."""
    shapes = {"table": jax.ShapeDtypeStruct((table.rows, table.dim), slab.dtype)}
    if slab.optimizer:
        shapes |= slot_shapes(slab.optimizer, table.rows, table.dim, slab.dtype)
    return {
        key: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=reshard.array_sharding(mesh, slab, x.shape)
        )
        for key, x in shapes.items()
    }


def _given(mesh: Mesh, slab: Slab, table: Table, source: Source) -> Arrays:
    """What the source has of a table, checked and placed."""
    wanted = array_specs(mesh, slab, table)
    placed = {}
    for key, array in source(table).items():
        if key not in wanted:
            raise UserError(f"table {table.name} has {', '.join(wanted)}, but {key!r} was given")
        if array.shape != wanted[key].shape:
            raise UserError(
                f"table {table.name}: {key} must have shape {wanted[key].shape}, got {array.shape}"
            )
        array, sharding = array.astype(wanted[key].dtype, copy=False), wanted[key].sharding
        if isinstance(array, np.ndarray):
            placed[key] = put_whole(array, sharding)
        else:
            placed[key] = jax.device_put(array, sharding)
    return placed


def _check_scalars(slab: Slab, given: Mapping[str, Arrays], seen: Scalars) -> None:
    """Tables of one optimizer share its scalars: on another plan they may lie in one slab."""
    optimizer = slab.optimizer
    names = [name for name, ndim in reshard.slot_ndims(slab).items() if ndim == 0]
    if optimizer is None or not names:
        return
    initial = jax.jit(optimizer.initial_slots)(np.zeros((1, slab.dim), slab.vector_dtype))
    for table, arrays in given.items():
        own = {name: np.asarray(arrays.get(name, initial[name])) for name in names}
        other, expected = seen.setdefault(optimizer_key(optimizer), (table, own))
        for name in names:
            if own[name] != expected[name]:
                raise UserError(
                    f"tables {other} and {table} have the same optimizer, so their {name} must be "
                    f"the same, got {expected[name]} and {own[name]}; give it for all tables of "
                    f"an optimizer or for none, where it is {np.asarray(initial[name])}"
                )


def _make_slab(mesh: Mesh, slab: Slab, seed: int, given: dict[str, Arrays]) -> Arrays:
    """The slab's arrays from its tables'; what wasn't given gets initial values."""
    drawn = reshard.initial_values(
        [table for name, table in slab.tables.items() if "table" not in given[name]], seed
    )

    def whole(table: Table, key: str) -> Array:
        if key in given[table.name]:
            return given[table.name][key]
        if key == "table":
            values = drawn[table.name]
            sharding = reshard.array_sharding(mesh, slab, values.shape)
            return jax.lax.with_sharding_constraint(values, sharding)
        assert slab.optimizer is not None
        return slab.optimizer.initial_slots(whole(table, "table").astype(slab.vector_dtype))[key]

    keys = ["table", *(slab.optimizer.slots if slab.optimizer else ())]
    arrays = {
        key: reshard.pack(
            mesh, slab, {name: whole(table, key) for name, table in slab.tables.items()}
        )
        for key in keys
    }
    return arrays | {"table": encode(arrays["table"])}
