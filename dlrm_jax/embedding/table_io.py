"""Conversion of whole tables to a state and back, one slab at a time, outside the step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from dlrm_jax.device_memory import check_memory
from dlrm_jax.embedding import reshard
from dlrm_jax.embedding.by_value import ByValue, optimizer_key, value_key
from dlrm_jax.embedding.initial_values import initial_values, native_initial_slab
from dlrm_jax.embedding.kernel_dispatch import has_native_initial_values
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.optimizer import OPTIMIZERS
from dlrm_jax.embedding.row_optimizer import slot_shapes
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.embedding.storage_dtype import decode, encode, storage_dtype
from dlrm_jax.embedding.table import Table
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import put_whole

Source = Callable[[Table], Mapping[str, Array | np.ndarray]]
Arrays = dict[str, Array]
_Make = Callable[[MeshAxes, Slab, int, dict[str, Arrays]], Arrays]
Specs = dict[str, jax.ShapeDtypeStruct]

Scalars = dict[Hashable, tuple[str, Mapping[str, np.ndarray]]]
"""The first table with each optimizer and its scalar slots, by optimizer key."""


def from_arrays(
    axes: MeshAxes, layout: Layout, source: Source, seed: int, native: bool
) -> EmbeddingState:
    """See `EmbeddingCollection.from_arrays`."""
    _check_memory(axes, layout)
    found, auto = {}, axes.auto
    scalars: Scalars = {}
    # The largest first: unless a kernel writes its rows in place, it is in memory twice for a
    # moment, while the others aren't there yet.
    for slab in sorted(layout.slabs, key=lambda slab: -slab.rows):
        given = {name: _given(auto, slab, table, source) for name, table in slab.tables.items()}
        _check_scalars(slab, given, scalars)
        in_place = native and has_native_initial_values(slab) and not any(given.values())
        make = _program(native_initial_slab if in_place else _make_slab, auto, slab, seed)
        with auto.current():
            leaves = make(given)
        del given
        if not in_place:
            jax.block_until_ready(leaves)
        if axes.explicit:
            leaves = jax.device_put(leaves, _shardings(axes, slab))
        found[slab.name] = leaves
    return _as_state(layout, found)


def _check_memory(axes: MeshAxes, layout: Layout) -> None:
    tables = [table for slab in layout.slabs for table in slab.tables.values()]
    largest = max(tables, key=lambda table: table.nbytes)
    details = (
        f"the largest table is {largest.name} with {largest.rows:,} rows of {largest.dim} numbers, "
        f"{largest.nbytes / 2**30:.1f} GiB. Use smaller tables or more devices"
    )
    check_memory("tables", state_specs(axes, layout), axes.mesh, details)


def iter_arrays(
    axes: MeshAxes,
    layout: Layout,
    unpackers: Mapping[str, reshard.Unpacker],
    state: EmbeddingState,
) -> Iterator[tuple[Table, str, Array]]:
    """See `EmbeddingCollection.iter_arrays`."""
    layout.check(state)
    auto = axes.auto
    for slab in layout.slabs:
        leaves = {"table": state.tables[slab.name], **state.slots.get(slab.name, {})}
        for key, leaf in leaves.items():
            with auto.current():
                tables = unpackers[slab.name](auto.moved(leaf))
            while tables:
                name = next(iter(tables))
                # No name here refers to the array, so that the caller decides how long it lives.
                yield slab.tables[name], key, _released(axes, tables.pop(name), slab, key)


def to_arrays(
    arrays: Iterable[tuple[Table, str, Array]], layout: Layout
) -> Iterator[tuple[Table, Arrays]]:
    """See `EmbeddingCollection.to_arrays`; takes what `iter_arrays` yields."""
    found: dict[str, Arrays] = {}
    for table, key, array in arrays:
        found.setdefault(table.name, {})[key] = array
        if len(found[table.name]) == 1 + len(reshard.slot_ndims(layout.slab_of(table.name))):
            yield table, found.pop(table.name)


def _released(axes: MeshAxes, array: Array, slab: Slab, key: str) -> Array:
    """Converts an array for the caller: to the table's dtype and the caller's mesh."""
    if key == "table" and array.dtype != slab.dtype:
        with axes.auto.current():
            array = _decode(array, slab.dtype)
    return axes.moved(array)


_decode = jax.jit(decode, static_argnames="dtype")


def state_specs(axes: MeshAxes, layout: Layout) -> EmbeddingState:
    """See `EmbeddingCollection.state_specs`."""
    return _as_state(layout, {slab.name: _slab_specs(axes, slab) for slab in layout.slabs})


def array_specs(axes: MeshAxes, slab: Slab, table: Table) -> Specs:
    """See `EmbeddingCollection.array_specs`."""
    return _specs(axes, slab, table.rows, slab.dtype, reshard.array_sharding, lambda shape: shape)


def _slab_specs(axes: MeshAxes, slab: Slab) -> Specs:
    """Shapes, dtypes and shardings of a slab's arrays."""
    rows = slab.rows * (1 if slab.split == "columns" else slab.shards)
    given = rows, storage_dtype(slab.dtype), reshard.slab_sharding
    return _specs(axes, slab, *given, slab.stored_shape)


def _specs(
    axes: MeshAxes,
    slab: Slab,
    rows: int,
    dtype: np.dtype,
    sharding: Callable[..., NamedSharding],
    stored: Callable[[tuple[int, ...]], tuple[int, ...]],
) -> Specs:
    """Specs of a table of so many rows, in this dtype, and of its optimizer slots, as stored."""
    shapes = {"table": jax.ShapeDtypeStruct((rows, slab.dim), dtype)}
    if slab.optimizer:
        shapes |= slot_shapes(slab.optimizer, rows, slab.dim, slab.dtype)
    found = {}
    for key, x in shapes.items():
        shape = stored(x.shape)
        found[key] = jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding(axes, slab, shape))
    return found


def _shardings(axes: MeshAxes, slab: Slab) -> dict[str, Any]:
    return {key: spec.sharding for key, spec in _slab_specs(axes, slab).items()}


def _as_state(layout: Layout, leaves: Mapping[str, dict[str, Any]]) -> EmbeddingState:
    """A state of the leaves of each slab, by its name: the table and the optimizer slots."""
    tables = {name: own.pop("table") for name, own in leaves.items()}
    slots = {s.name: leaves[s.name] for s in layout.slabs if s.optimizer}
    return EmbeddingState(tables, slots, layout.key)


def _given(axes: MeshAxes, slab: Slab, table: Table, source: Source) -> Arrays:
    """Checks and places the arrays that the source has for a table."""
    wanted = array_specs(axes, slab, table)
    placed, arrays = {}, source(table)
    if not isinstance(arrays, Mapping):
        raise UserError(
            f"source: expected arrays of table {table.name} by name, none of them for its initial "
            f"values, got {type(arrays).__name__}"
        )
    for key, array in arrays.items():
        if key not in wanted:
            raise UserError(f"table {table.name} has {', '.join(wanted)}, but {key!r} was given")
        name = f"table {table.name}: {key}"
        check_array(name, array, wanted[key])
        array, sharding = _cast(name, array, wanted[key].dtype), wanted[key].sharding
        if isinstance(array, np.ndarray):
            placed[key] = put_whole(array, sharding)
        else:
            placed[key] = jax.device_put(array, sharding)
    return placed


def _cast(name: str, array: Any, dtype: np.dtype) -> Any:
    """An array in this dtype; the host's numbers must fit into it."""
    narrower = isinstance(array, np.ndarray) and array.dtype.kind == "f"
    if narrower and array.dtype.itemsize > dtype.itemsize:
        # Infinite ones, which the user has seen, and NaN stay as they are.
        too_large = np.isfinite(array) & (np.abs(array) > float(jnp.finfo(dtype).max))
        if too_large.any():
            place = np.argwhere(too_large)[0].tolist()
            raise UserError(
                f"{name}: expected numbers that fit into {dtype}, got {array[tuple(place)]} at "
                f"{place}"
            )
    return array.astype(dtype, copy=False)


def check_array(name: str, array: object, spec: jax.ShapeDtypeStruct) -> None:
    """Checks an array that is given for one of this shape and dtype.

    Args:
        name: name of the array, for messages.
        array: array to check: real numbers, or integers for what is an integer.
        spec: shape, and dtype that it is cast to.

    Raises:
        UserError: it is no array, or of another shape or kind.
    """
    if not isinstance(array, np.ndarray | jax.Array):
        raise UserError(f"{name}: expected an array, got {type(array).__name__}")
    is_real = jnp.issubdtype(spec.dtype, jnp.floating)
    kinds = (jnp.integer, jnp.floating) if is_real else (jnp.integer,)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        expected = "real numbers" if is_real else "integers"
        raise UserError(f"{name}: expected {expected}, got dtype {array.dtype}")
    if array.shape != spec.shape:
        raise UserError(f"{name} must have shape {spec.shape}, got {array.shape}")


def _check_scalars(slab: Slab, given: Mapping[str, Arrays], seen: Scalars) -> None:
    """Checks that tables with one optimizer share its scalars, since tables in one slab must."""
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


def _program(make: _Make, axes: MeshAxes, slab: Slab, seed: int) -> jax.stages.Wrapped:
    """The jitted function that makes a slab, the same one for slabs that differ in rates alone.

    So other collections of such tables compile it no more. What has functions of a user isn't
    kept: they may hold arrays, and read what changes.
    """
    optimizer = slab.optimizer
    if optimizer and type(optimizer) not in OPTIMIZERS.values():
        return _jitted(make, axes, slab, seed)
    if any(table.init for table in slab.tables.values()):
        return _jitted(make, axes, slab, seed)
    tables = {x: dataclasses.replace(own, optimizer=None) for x, own in slab.tables.items()}
    if optimizer:
        optimizer = dataclasses.replace(optimizer, learning_rate=0.0)  # pyright: ignore
    slab = dataclasses.replace(slab, tables=tables, optimizer=optimizer)
    return _kept(make, axes, ByValue(value_key(slab), slab), seed)


@functools.lru_cache(maxsize=128)
def _kept(make: _Make, axes: MeshAxes, slab: ByValue, seed: int) -> jax.stages.Wrapped:
    return _jitted(make, axes, slab.value, seed)


def _jitted(make: _Make, axes: MeshAxes, slab: Slab, seed: int) -> jax.stages.Wrapped:
    made = functools.partial(make, axes, slab, seed)
    return jax.jit(made, out_shardings=_shardings(axes, slab))


def _make_slab(axes: MeshAxes, slab: Slab, seed: int, given: dict[str, Arrays]) -> Arrays:
    """Makes a slab's arrays from given arrays of its tables and initial values for the others."""
    drawn = initial_values(
        [table for name, table in slab.tables.items() if "table" not in given[name]], seed
    )

    def whole(table: Table, key: str) -> Array:
        if key in given[table.name]:
            return given[table.name][key]
        if key == "table":
            values = drawn[table.name]
            sharding = reshard.array_sharding(axes, slab, values.shape)
            return jax.lax.with_sharding_constraint(values, sharding)
        assert slab.optimizer is not None
        return slab.optimizer.initial_slots(whole(table, "table").astype(slab.vector_dtype))[key]

    keys = ["table", *(slab.optimizer.slots if slab.optimizer else ())]
    arrays = {
        key: reshard.pack(
            axes, slab, {name: whole(table, key) for name, table in slab.tables.items()}
        )
        for key in keys
    }
    return arrays | {"table": encode(arrays["table"])}
