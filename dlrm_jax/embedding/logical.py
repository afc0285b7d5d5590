"""Tables as logical [rows, dim] arrays: initial values, and slabs to tables and back.

A logical array is the same on every mesh and plan. It is split by columns where they
divide among the devices, since rows seldom do, so it adds one table's share to a device.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from dlrm_jax.embedding.layout import Slab
from dlrm_jax.embedding.plan import Piece
from dlrm_jax.embedding.table import Table
from dlrm_jax.mesh import DATA, MODEL

# Rows made by one call of an initializer: part of the definition of the initial values.
# One call for a whole table would peak at four times its size.
INITIAL_ROWS = 2**14


def slab_sharding(mesh: Mesh, slab: Slab) -> NamedSharding:
    """The sharding of a slab's arrays: rows over the model axis, or none."""
    # On one shard both mean the same, and jitted functions return the second.
    split = slab.sharded and mesh.shape[MODEL] > 1
    return NamedSharding(mesh, PartitionSpec(MODEL) if split else PartitionSpec())


def logical_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Columns over as many of the axes as divide them; vectors are on every device."""
    axes: tuple[str, ...] = ()
    if len(shape) == 2:
        for candidate in ((DATA, MODEL), (MODEL,), (DATA,)):
            if shape[1] % _size(mesh, candidate) == 0:
                axes = candidate
                break
    return NamedSharding(mesh, PartitionSpec(None, axes) if axes else PartitionSpec())


def initial_values(table: Table, seed: int) -> Float[Array, "rows dim"]:
    """Initial values, a function of the seed, the table's name and the row alone."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(table.name.encode()))
    chunks = -(-table.rows // INITIAL_ROWS)
    values = jax.lax.map(
        lambda chunk: table.initial_rows(jax.random.fold_in(key, chunk), INITIAL_ROWS),
        jnp.arange(chunks),
    )
    return values.reshape(-1, table.dim)[: table.rows]


def pack(
    mesh: Mesh, slab: Slab, tables: Mapping[str, Shaped[Array, "rows *d"]]
) -> Shaped[Array, "R *d"]:
    """Logical arrays of the slab's tables as the slab's array. Call under `jax.jit`."""
    shards: list[list[Array]] = [[] for _ in range(_shards(mesh, slab))]
    for piece, _ in slab.pieces:  # pieces lie on their shard in this order
        shards[piece.shard or 0].append(tables[piece.table][piece.residue :: piece.modulus])
    trailing = next(iter(tables.values())).shape[1:]
    columns = []
    for parts in shards:
        rows = sum(part.shape[0] for part in parts)
        padding = jnp.zeros((slab.rows - rows, *trailing), next(iter(tables.values())).dtype)
        columns.append(jnp.concatenate([*parts, padding]) if len(parts) != 1 or rows < slab.rows
                       else parts[0])
    stacked = jnp.stack(columns)
    stacked = jax.lax.with_sharding_constraint(stacked, _by_columns(mesh, stacked.shape))
    return jax.lax.with_sharding_constraint(
        stacked.reshape(-1, *trailing), slab_sharding(mesh, slab)
    )


def unpack(
    mesh: Mesh, slab: Slab, array: Shaped[Array, "R *d"]
) -> dict[str, Shaped[Array, "rows *d"]]:
    """A slab's array as logical arrays of its tables. Call under `jax.jit`."""
    stacked = array.reshape(_shards(mesh, slab), slab.rows, *array.shape[1:])
    # Resharded once to columns, so that every slice of rows below is local.
    stacked = jax.lax.with_sharding_constraint(stacked, _by_columns(mesh, stacked.shape))
    return {name: _unpack_table(slab, table, stacked) for name, table in slab.tables.items()}


def _unpack_table(slab: Slab, table: Table, stacked: Array) -> Array:
    pieces = [(piece, start) for piece, start in slab.pieces if piece.table == table.name]
    height = max(piece.rows(table.rows) for piece, _ in pieces)

    def rows_of(piece: Piece, start: int) -> Array:
        count = piece.rows(table.rows)
        part = stacked[piece.shard or 0, start : start + count]
        return jnp.pad(part, [(0, height - count)] + [(0, 0)] * (part.ndim - 1))

    if len(pieces) == 1:
        return rows_of(*pieces[0])
    # Rows r ≡ k (mod m) side by side, [height, m, ...], are the table in row-major order.
    dealt = jnp.stack([rows_of(piece, start) for piece, start in pieces], axis=1)
    return dealt.reshape(-1, *dealt.shape[2:])[: table.rows]


def _by_columns(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    spec = logical_sharding(mesh, shape[1:]).spec
    return NamedSharding(mesh, PartitionSpec(None, *spec))


def _shards(mesh: Mesh, slab: Slab) -> int:
    return mesh.shape[MODEL] if slab.sharded else 1


def _size(mesh: Mesh, axes: tuple[str, ...]) -> int:
    size = 1
    for axis in axes:
        size *= mesh.shape[axis]
    return size
