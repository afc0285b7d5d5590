"""Tables as logical [rows, dim] arrays: initial values, and slabs to tables and back.

A logical array is the same on every mesh and plan. It is split by columns where they
divide among the devices, since rows seldom do, so it adds one table's share to a device.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from dlrm_jax.embedding.layout import Slab
from dlrm_jax.embedding.table import Table
from dlrm_jax.mesh import DATA, MODEL

# Rows made by one call of an initializer: part of the definition of the initial values.
# One call for a whole table would peak at four times its size.
INITIAL_ROWS = 2**14

# Rows of one shard that are moved at a time.
_CHUNK_ROWS = 2**15


def slab_spec(slab: Slab, ndim: int = 2) -> PartitionSpec:
    """How a slab's arrays are split over the model axis: by rows, by columns, or not at all.

    Args:
        slab: whose weights or slots they are.
        ndim: of the array; slots with one number a row have no columns to split, and a single
            number is on every device.
    """
    if slab.split == "rows" and ndim:
        return PartitionSpec(MODEL)
    return PartitionSpec(None, MODEL) if slab.split == "columns" and ndim == 2 else PartitionSpec()


def slot_ndims(slab: Slab) -> dict[str, int]:
    """Dimensions of the optimizer's slots: one number, one a row, or one an element."""
    slots = slab.optimizer.slots if slab.optimizer else {}
    return {name: ("scalar", "row", "element").index(kind) for name, kind in slots.items()}


def slab_sharding(mesh: Mesh, slab: Slab, ndim: int = 2) -> NamedSharding:
    """`slab_spec` on a mesh."""
    # On one shard all of its values mean the same, and jitted functions return the last.
    return NamedSharding(mesh, slab_spec(slab, ndim) if mesh.shape[MODEL] > 1 else PartitionSpec())


def array_sharding(mesh: Mesh, slab: Slab, shape: tuple[int, ...]) -> NamedSharding:
    """How a logical array of the slab's tables is split.

    Columns over as many of the axes as divide them; vectors are on every device. A slab that is
    split by columns itself needs no communication: its tables stay as they are.
    """
    if slab.split == "columns":
        return slab_sharding(mesh, slab, len(shape))
    axes = _column_axes(mesh, shape)
    return NamedSharding(mesh, PartitionSpec(None, axes) if axes else PartitionSpec())


def initial_values(tables: Sequence[Table], seed: int) -> dict[str, Float[Array, "_ _"]]:
    """Initial values by name, a function of the seed, the table's name and the row alone.

    Args:
        tables: of one width and dtype.
        seed: of all random numbers.
    """
    groups: dict[int, list[Table]] = {}
    for table in tables:  # by identity: an initializer of one's own may not be hashable
        groups.setdefault(id(table.init), []).append(table)
    found = {}
    for group in groups.values():
        # In one loop, since compiling a random generator takes longer than running it.
        chunks = [-(-table.rows // INITIAL_ROWS) for table in group]
        name = np.repeat([zlib.crc32(table.name.encode()) for table in group], chunks)
        number = np.concatenate([np.arange(count) for count in chunks])
        bound = np.repeat([table.initial_bound for table in group], chunks)

        def draw(of: tuple[Array, Array, Array], table: Table = group[0]) -> Array:
            name, number, bound = of
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), name), number)
            return table.initial_rows(key, INITIAL_ROWS, bound)

        dtype = jnp.promote_types(group[0].dtype, jnp.float32)
        drawn = jax.lax.map(draw, (name.astype("u4"), number.astype("u4"), bound.astype(dtype)))
        drawn = drawn.reshape(-1, group[0].dim)
        start = 0
        for table, count in zip(group, chunks, strict=True):
            found[table.name] = drawn[start : start + table.rows]
            start += count * INITIAL_ROWS
    return found


def pack(mesh: Mesh, slab: Slab, tables: Mapping[str, Array]) -> Array:
    """Logical arrays of the slab's tables as the slab's array. Call under `jax.jit`."""
    some = next(iter(tables.values()))
    if some.ndim == 0:  # the same for all tables
        return some
    if slab.split == "columns":  # every shard has the pieces of all tables, one after the other
        whole = jnp.concatenate([tables[name] for name in slab.tables])
        return jax.lax.with_sharding_constraint(whole, slab_sharding(mesh, slab, whole.ndim))
    shards: list[list[Array]] = [[] for _ in range(_shards(mesh, slab))]
    for piece, _ in slab.pieces:  # on its shard, pieces lie in this order
        shards[piece.shard or 0].append(tables[piece.table][piece.residue :: piece.modulus])
    columns = []
    for parts in shards:
        missing = slab.rows - sum(part.shape[0] for part in parts)
        if missing:
            parts.append(jnp.zeros((missing, *some.shape[1:]), some.dtype))
        columns.append(jnp.concatenate(parts) if len(parts) > 1 else parts[0])
    stacked = jnp.stack(columns) if len(columns) > 1 else columns[0][None]
    for sharding in reversed(_way_to_columns(mesh, slab, stacked.shape)):
        stacked = jax.lax.with_sharding_constraint(stacked, sharding)
    return stacked.reshape(-1, *some.shape[1:])


class Unpacker:
    """A slab's array as logical arrays of its tables, one large chunk of rows at a time.

    Besides the results only a chunk is held. Each chunk is a program of its own: collectives
    repeated in a loop within one program make XLA abort on emulated devices now and then.

    Args:
        mesh: the slab's.
        slab: whose arrays, weights or slots, to take apart.
    """

    def __init__(self, mesh: Mesh, slab: Slab):
        self._mesh = mesh
        self._slab = slab
        self._slices = jax.jit(self._make_slices)
        self._first = jax.jit(self._make_first)
        self._fill = {
            name: jax.jit(functools.partial(self._make_fill, table), donate_argnums=0)
            for name, table in slab.tables.items()
        }

    def __call__(self, array: Array) -> dict[str, Array]:
        """The logical array of each table."""
        in_order = self._slab.split != "rows" or self._mesh.shape[MODEL] == 1
        if array.ndim == 0 or (len(self._slab.tables) == 1 and in_order):
            return dict.fromkeys(self._slab.tables, array)  # it is that already
        if self._slab.split == "columns":
            return self._slices(array)
        tables = jax.block_until_ready(self._first(array))
        for name, table in self._slab.tables.items():
            chunks = table.rows // (_CHUNK_ROWS * self._modulus(table))
            for first in range(0, chunks * _CHUNK_ROWS, _CHUNK_ROWS):
                tables[name] = jax.block_until_ready(self._fill[name](tables[name], array, first))
        return tables

    def _make_slices(self, array: Array) -> dict[str, Array]:
        """All tables of a slab that is split by columns, whose rows every shard has in order."""
        sharding = slab_sharding(self._mesh, self._slab, array.ndim)
        start, tables = 0, {}
        for name, table in self._slab.tables.items():
            rows = array[start : start + table.rows]
            tables[name] = jax.lax.with_sharding_constraint(rows, sharding)
            start += table.rows
        return tables

    def _modulus(self, table: Table) -> int:
        """Over how many shards the table's rows are dealt out."""
        return next(p.modulus for p, _ in self._slab.pieces if p.table == table.name)

    def _make_first(self, array: Array) -> dict[str, Array]:
        """All tables, zeros but for the rows behind the last whole chunk."""

        def run(local: Array) -> dict[str, Array]:
            tables = {}
            for name, table in self._slab.tables.items():
                modulus = self._modulus(table)
                chunks, rest = divmod(table.rows, _CHUNK_ROWS * modulus)
                rows = self._rows(table, local, chunks * _CHUNK_ROWS, -(-rest // modulus))
                before = table.rows - rest
                tables[name] = jnp.pad(rows[:rest], [(before, 0)] + [(0, 0)] * (local.ndim - 1))
            return tables

        specs = {name: self._spec(table, array) for name, table in self._slab.tables.items()}
        return jax.shard_map(run, mesh=self._mesh, in_specs=slab_spec(self._slab), out_specs=specs)(
            array
        )

    def _make_fill(self, table: Table, out: Array, array: Array, first: Array) -> Array:
        """The table with the chunk that begins at row ``first`` of each shard filled in."""

        def run(out: Array, local: Array, first: Array) -> Array:
            rows = self._rows(table, local, first, _CHUNK_ROWS)
            start = first * self._modulus(table)
            return jax.lax.dynamic_update_slice_in_dim(out, rows, start, axis=0)

        spec = self._spec(table, array)
        return jax.shard_map(
            run,
            mesh=self._mesh,
            in_specs=(spec, slab_spec(self._slab), PartitionSpec()),
            out_specs=spec,
        )(out, array, first)

    def _spec(self, table: Table, array: Array) -> PartitionSpec:
        return array_sharding(self._mesh, self._slab, (table.rows, *array.shape[1:])).spec

    def _rows(self, table: Table, local: Array, first: int | Array, count: int) -> Array:
        """One device's columns of consecutive rows of a table. In `jax.shard_map`.

        Args:
            table: in this slab.
            local: the device's own part of the slab.
            first: row of each shard's piece to begin with.
            count: rows of each piece.
        """
        mesh, slab = self._mesh, self._slab
        pieces = [(piece, start) for piece, start in slab.pieces if piece.table == table.name]
        pieces.sort(key=lambda placed: placed[0].residue)  # a plan may list them in any order
        starts = np.zeros(_shards(mesh, slab), np.int32)
        for piece, start in pieces:
            starts[piece.shard or 0] = start
        mine = jnp.asarray(starts)[jax.lax.axis_index(MODEL)] if slab.sharded else starts[0]
        part = local.at[mine + first + jnp.arange(count)].get(mode="fill", fill_value=0)
        everyone = _to_columns(mesh, slab, part, _column_axes(mesh, local.shape))
        # Rows r ≡ k (mod m) of all shards k, as [count, m, c], are consecutive rows of the table.
        dealt = everyone[np.array([piece.shard or 0 for piece, _ in pieces])]
        return jnp.swapaxes(dealt, 0, 1).reshape(count * len(pieces), *dealt.shape[2:])


def _to_columns(mesh: Mesh, slab: Slab, part: Array, axes: tuple[str, ...]) -> Array:
    """This device's columns of every shard's rows: [rows, *d] to [M, rows, *c]."""
    if DATA in axes:
        part = _own_columns(mesh, part, DATA)
    if not slab.sharded:
        return (_own_columns(mesh, part, MODEL) if MODEL in axes else part)[None]
    if MODEL not in axes:
        return jax.lax.all_gather(part, MODEL, to="invarying")
    shards = mesh.shape[MODEL]
    split = part.reshape(part.shape[0], shards, part.shape[1] // shards)
    return jax.lax.all_to_all(split, MODEL, split_axis=1, concat_axis=0)


def _own_columns(mesh: Mesh, part: Array, axis: str) -> Array:
    width = part.shape[1] // mesh.shape[axis]
    return jax.lax.dynamic_slice_in_dim(part, jax.lax.axis_index(axis) * width, width, axis=1)


def _way_to_columns(mesh: Mesh, slab: Slab, shape: tuple[int, ...]) -> list[NamedSharding]:
    """Shardings of [M, R, ...], from one shard's rows a device to columns, step by step.

    The partitioner makes a slice and an all-to-all of the way, and their opposites of the way
    back; asked for both at once, it would hold the whole array on every device.
    """
    axes = _column_axes(mesh, shape[1:])
    rows = MODEL if slab.sharded else None
    others = tuple(axis for axis in axes if axis != rows)
    specs = [(rows, None), (rows, None, others or None), (None, None, axes or None)]
    return [NamedSharding(mesh, PartitionSpec(*spec[: len(shape)])) for spec in specs]


def _column_axes(mesh: Mesh, shape: tuple[int, ...]) -> tuple[str, ...]:
    if len(shape) == 2:
        for axes in ((DATA, MODEL), (MODEL,), (DATA,)):
            if shape[1] % _size(mesh, axes) == 0:
                return axes
    return ()


def _shards(mesh: Mesh, slab: Slab) -> int:
    return mesh.shape[MODEL] if slab.sharded else 1


def _size(mesh: Mesh, axes: tuple[str, ...]) -> int:
    size = 1
    for axis in axes:
        size *= mesh.shape[axis]
    return size
