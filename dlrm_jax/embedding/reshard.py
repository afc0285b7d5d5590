"""Conversion of slabs to whole tables [rows, dim] and back.

A whole table is the same on every mesh and plan. It is split by columns if the number of devices
divides them, since it seldom divides the rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from dlrm_jax.embedding import packed_rows, row_split
from dlrm_jax.embedding.by_value import ByValue, value_key
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.table import Table

# Rows of one shard that are moved at a time.
_CHUNK_ROWS = 2**15


def slab_spec(slab: Slab, axes: MeshAxes, ndim: int = 2) -> PartitionSpec:
    """The split of a slab's array: by rows, over all axes or the model axis, by columns, or none.

    Args:
        slab: slab of the array.
        axes: axes of the mesh.
        ndim: rank of the array; optimizer slots with one number per row have no columns to split,
            and a scalar is on every device.
    """
    over = shard_axes(slab, axes)
    if slab.split == "columns":
        return PartitionSpec(None, *over) if ndim == 2 else PartitionSpec()
    if not over or not ndim:
        return PartitionSpec()
    return PartitionSpec(over) if len(over) > 1 else PartitionSpec(*over)


def shard_axes(slab: Slab, axes: MeshAxes) -> tuple[str, ...]:
    """Names of the axes that a slab is split over; none if every device has a copy."""
    if slab.fully_sharded:
        return axes.split
    return (axes.model,) if slab.sharded else ()


def slot_ndims(slab: Slab) -> dict[str, int]:
    """The rank of each optimizer slot: 0 for a scalar, 1 for one number per row, 2 per element."""
    slots = slab.optimizer.slots if slab.optimizer else {}
    return {name: ("scalar", "row", "element").index(kind) for name, kind in slots.items()}


def slab_sharding(axes: MeshAxes, slab: Slab, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of a slab's array on the mesh, see `slab_spec`."""
    spec = slab_spec(slab, axes, len(shape))
    # The sharding that jitted functions return; with another one, a step would be compiled twice.
    if axes.explicit:
        spec = PartitionSpec(*spec, *[None] * (len(shape) - len(spec)))
    else:  # a split over one device means none
        over = tuple(name for name in shard_axes(slab, axes) if axes.mesh.shape[name] > 1)
        if not over:
            spec = PartitionSpec()
        elif slab.fully_sharded and len(shape):
            spec = PartitionSpec(over) if len(over) > 1 else PartitionSpec(*over)
    return axes.sharding(spec)


def array_sharding(axes: MeshAxes, slab: Slab, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of a whole table or optimizer slot.

    Columns are split over as many axes as divide them; vectors are on every device. A slab that is
    split by columns needs no communication: its tables keep their split.
    """
    if slab.split == "columns":
        return slab_sharding(axes, slab, shape)
    split = _column_axes(axes, slab, shape)
    return axes.sharding(PartitionSpec(None, split) if split else PartitionSpec())


def pack(axes: MeshAxes, slab: Slab, tables: Mapping[str, Array]) -> Array:
    """Makes a slab's array from whole arrays of its tables, by name. Call under `jax.jit`."""
    some = next(iter(tables.values()))
    if some.ndim == 0:  # the same for all tables
        return some
    if slab.split == "columns":  # shards have pieces of all tables, one after the other
        whole = jnp.concatenate([tables[name] for name in slab.tables])
        padding = slab.rows - len(whole)
        whole = jnp.pad(whole, [(0, padding)] + [(0, 0)] * (whole.ndim - 1)) if padding else whole
        whole = jax.lax.with_sharding_constraint(whole, slab_sharding(axes, slab, whole.shape))
        return _on_devices(axes, slab, packed_rows.pack, whole)
    if slab.fully_sharded:
        whole = [tables[piece.table] for piece, _ in slab.pieces]
        missing = slab.shards * slab.rows - sum(map(len, whole))
        whole.append(jnp.zeros((missing, *some.shape[1:]), some.dtype))
        in_order = jnp.concatenate(whole).reshape(slab.rows, slab.shards, *some.shape[1:])
        stacked = jnp.swapaxes(in_order, 0, 1)
    else:
        shards: list[list[Array]] = [[] for _ in range(slab.shards)]
        for piece, _ in slab.pieces:  # on its shard, pieces lie in this order
            own = row_split.stored_rows(tables[piece.table], piece.modulus, piece.residue)
            shards[piece.shard or 0].append(own)
        for pieces in shards:
            missing = slab.rows - sum(len(piece) for piece in pieces)
            if missing:
                pieces.append(jnp.zeros((missing, *some.shape[1:]), some.dtype))
        stacked = jnp.stack([jnp.concatenate(pieces) for pieces in shards])
    for sharding in reversed(_column_shardings(axes, slab, stacked.shape)):
        stacked = jax.lax.with_sharding_constraint(stacked, sharding)
    return _on_devices(axes, slab, packed_rows.pack, stacked.reshape(-1, *some.shape[1:]))


def _on_devices(axes: MeshAxes, slab: Slab, function: Callable[[Array], Array], x: Array) -> Array:
    """A function of each device's rows of a packed slab; the array as it is of another one."""
    if not slab.packed or x.ndim < 2:
        return x
    spec = slab_spec(slab, axes)
    return jax.shard_map(function, mesh=axes.mesh, in_specs=spec, out_specs=spec)(x)


def unpacker(axes: MeshAxes, slab: Slab) -> Unpacker:
    """The `Unpacker` of a slab, the same one for slabs of the same rows of the same tables.

    So its programs aren't compiled again for other collections. It holds no function of a user.
    """
    tables = {
        name: dataclasses.replace(table, init=None, optimizer=None)
        for name, table in slab.tables.items()
    }
    slab = dataclasses.replace(slab, tables=tables, optimizer=None)
    return _kept(axes, ByValue(value_key(slab), slab), _CHUNK_ROWS)


@functools.lru_cache(maxsize=128)
def _kept(axes: MeshAxes, slab: ByValue, chunk_rows: int) -> Unpacker:
    return Unpacker(axes, slab.value, chunk_rows)


class Unpacker:
    """Makes whole arrays of a slab's tables, one large chunk of rows at a time.

    Only one chunk is in memory besides the results. Each chunk is a program of its own: XLA now and
    then aborts on emulated devices if one program repeats collectives in a loop.

    Args:
        axes: axes of the mesh, of type Auto.
        slab: slab whose arrays to convert.
        chunk_rows: rows of one shard that are moved at a time.
    """

    def __init__(self, axes: MeshAxes, slab: Slab, chunk_rows: int):
        self._axes = axes
        self._slab = slab
        self._chunk_rows = chunk_rows
        self._pieces = {
            # A plan may list the pieces of a table in any order.
            name: sorted(
                (placed for placed in slab.on_shards if placed[0].table == name),
                key=lambda placed: placed[0].residue,
            )
            for name in slab.tables
        }
        self._slices = jax.jit(self._make_slices)
        self._first = jax.jit(self._make_first)
        self._fill = {
            name: jax.jit(functools.partial(self._make_fill, table), donate_argnums=0)
            for name, table in slab.tables.items()
        }

    def __call__(self, array: Array) -> dict[str, Array]:
        """The whole arrays by table name, of the slab's table or of one of its optimizer slots."""
        in_order = self._slab.split not in ("rows", "devices") or self._slab.shards == 1
        rows = [table.rows for table in self._slab.tables.values()]
        if array.ndim == 0 or (rows == [self._slab.rows] and in_order and not self._slab.packed):
            return dict.fromkeys(self._slab.tables, array)  # it is that already
        if self._slab.split == "columns":
            return self._slices(array)
        tables = jax.block_until_ready(self._first(array))
        for name, table in self._slab.tables.items():
            chunks = table.rows // (self._chunk_rows * len(self._pieces[name]))
            for first in range(0, chunks * self._chunk_rows, self._chunk_rows):
                tables[name] = jax.block_until_ready(self._fill[name](tables[name], array, first))
        return tables

    def _make_slices(self, array: Array) -> dict[str, Array]:
        """The tables of a slab that is split by columns: every shard has all rows in order."""
        width = self._slab.width
        array = _on_devices(self._axes, self._slab, lambda x: packed_rows.unpack(x, width), array)
        sharding = slab_sharding(self._axes, self._slab, array.shape)
        start, tables = 0, {}
        for name, table in self._slab.tables.items():
            rows = array[start : start + table.rows]
            tables[name] = jax.lax.with_sharding_constraint(rows, sharding)
            start += table.rows
        return tables

    def _make_first(self, array: Array) -> dict[str, Array]:
        """All tables with the rows after the last whole chunk; the others are zeros."""

        def run(local: Array) -> dict[str, Array]:
            tables = {}
            for name, table in self._slab.tables.items():
                pieces = len(self._pieces[name])
                chunks, rest = divmod(table.rows, self._chunk_rows * pieces)
                most = row_split.count(rest, pieces, 0)
                rows = self._rows(table, local, chunks * self._chunk_rows, most)
                before = table.rows - rest
                tables[name] = jnp.pad(rows[:rest], [(before, 0)] + [(0, 0)] * (local.ndim - 1))
            return tables

        specs = {name: self._spec(table, array) for name, table in self._slab.tables.items()}
        own = slab_spec(self._slab, self._axes, array.ndim)
        return jax.shard_map(run, mesh=self._axes.mesh, in_specs=own, out_specs=specs)(array)

    def _make_fill(self, table: Table, out: Array, array: Array, first: Array) -> Array:
        """Fills in the chunk of a table that begins at row ``first`` of each shard."""

        def run(out: Array, local: Array, first: Array) -> Array:
            rows = self._rows(table, local, first, self._chunk_rows)
            start = row_split.table_row(first, len(self._pieces[table.name]), 0)
            return jax.lax.dynamic_update_slice_in_dim(out, rows, start, axis=0)

        spec = self._spec(table, array)
        return jax.shard_map(
            run,
            mesh=self._axes.mesh,
            in_specs=(spec, slab_spec(self._slab, self._axes, array.ndim), PartitionSpec()),
            out_specs=spec,
        )(out, array, first)

    def _spec(self, table: Table, array: Array) -> PartitionSpec:
        shape = (table.rows, self._slab.dim)[: array.ndim]
        return array_sharding(self._axes, self._slab, shape).spec

    def _rows(self, table: Table, local: Array, first: int | Array, count: int) -> Array:
        """One device's columns of consecutive rows of a table, inside `jax.shard_map`.

        Args:
            table: table of this slab.
            local: the slab on this device.
            first: first row in each shard's piece.
            count: number of rows of each piece.
        """
        axes, slab, pieces = self._axes, self._slab, self._pieces[table.name]
        starts = np.zeros(slab.shards, np.int32)
        for piece, start in pieces:
            starts[piece.shard or 0] = start
        over = shard_axes(slab, axes)
        mine = jnp.asarray(starts)[jax.lax.axis_index(over)] if over else starts[0]
        rows = packed_rows.take(local, mine + first + jnp.arange(count), slab.width)
        by_shard = _to_columns(axes, slab, rows, _column_axes(axes, slab, rows.shape))
        by_residue = by_shard[np.array([piece.shard or 0 for piece, _ in pieces])]
        return row_split.in_table_order(by_residue)


def _to_columns(axes: MeshAxes, slab: Slab, rows: Array, split: tuple[str, ...]) -> Array:
    """Converts this shard's rows [rows, *d] to this device's columns of all rows, [S, rows, *c].

    S is the number of shards of the slab.

    Args:
        axes: axes of the mesh.
        slab: slab of the rows.
        rows: this shard's rows.
        split: names of the axes that the columns are split over, see `_column_axes`.
    """
    over = shard_axes(slab, axes)
    for name in split:
        if name not in over:
            rows = _own_columns(axes, rows, name)
    rows = rows[None]
    for name in reversed(over):  # the last axis varies fastest in the numbers of shards
        if name not in split:
            rows = jax.lax.all_gather(rows, name, to="invarying")
        else:
            parts = axes.mesh.shape[name]
            by_receiver = rows.reshape(*rows.shape[:2], parts, rows.shape[2] // parts)
            rows = jax.lax.all_to_all(by_receiver, name, split_axis=2, concat_axis=0)
        rows = rows.reshape(rows.shape[0] * rows.shape[1], *rows.shape[2:])
    return rows


def _own_columns(axes: MeshAxes, rows: Array, name: str) -> Array:
    width = rows.shape[1] // axes.mesh.shape[name]
    return jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(name) * width, width, axis=1)


def _column_shardings(axes: MeshAxes, slab: Slab, shape: tuple[int, ...]) -> list[NamedSharding]:
    """Shardings of [M, R, ...] that lead from a split by rows to one by columns, step by step.

    XLA's partitioner turns the steps into a slice and an all-to-all, and their inverses on the way
    back. In a single step, it would make the whole array on every device.
    """
    columns, rows = _column_axes(axes, slab, shape[1:]), shard_axes(slab, axes)
    others = tuple(name for name in columns if name not in rows)
    specs = [(rows or None, None, None), (rows or None, None, others or None)]
    for kept in range(len(rows) - 1, -1, -1):  # the last axis of the rows moves first
        split = tuple(name for name in columns if name not in rows[:kept])
        specs.append((rows[:kept] or None, None, split or None))
    return [axes.sharding(PartitionSpec(*spec[: len(shape)])) for spec in specs]


def _column_axes(axes: MeshAxes, slab: Slab, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The axes that an array's columns are split over: as many as divide them.

    The axes of a fully sharded slab are in reverse, so that columns move over one axis at a time.
    """
    if len(shape) == 2:
        for split in (axes.split, (axes.model,), axes.data):
            split = split[::-1] if slab.fully_sharded else split
            if split and shape[1] % math.prod(axes.mesh.shape[name] for name in split) == 0:
                return split
    return ()
