"""Initial values of tables."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt32

from dlrm_jax.embedding import reshard
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.plan import Piece
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.table import Table
from dlrm_jax.native import ops

# Rows that one call of an initializer makes; they decide the initial values. One call for a whole
# table would peak at four times its size.
INITIAL_ROWS = 2**14


def initial_values(tables: Sequence[Table], seed: int) -> dict[str, Float[Array, "_ _"]]:
    """Initial values by table name; they depend on the seed, the table's name and the row alone.

    Args:
        tables: tables of one width and dtype.
        seed: seed of all random numbers.
    """
    by_initializer: dict[int, list[Table]] = {}
    for table in tables:  # by identity: a user's initializer may not be hashable
        by_initializer.setdefault(id(table.init), []).append(table)
    found = {}
    for alike in by_initializer.values():
        # In one loop, since compiling a random generator takes longer than running it.
        chunks = [-(-table.rows // INITIAL_ROWS) for table in alike]
        name = np.repeat([zlib.crc32(table.name.encode()) for table in alike], chunks)
        number = np.concatenate([np.arange(count) for count in chunks])
        bound = np.repeat([table.initial_bound for table in alike], chunks)

        def draw(chunk: tuple[Array, Array, Array], table: Table = alike[0]) -> Array:
            return initial_chunk(table, jax.random.key(seed), *chunk)

        dtype = jnp.promote_types(alike[0].dtype, jnp.float32)
        drawn = jax.lax.map(draw, (name.astype("u4"), number.astype("u4"), bound.astype(dtype)))
        drawn = drawn.reshape(-1, alike[0].dim)
        start = 0
        for table, count in zip(alike, chunks, strict=True):
            found[table.name] = drawn[start : start + table.rows]
            start += count * INITIAL_ROWS
    return found


def initial_chunk(
    table: Table, key: Array, name: Any, number: Any, bound: float | Array
) -> Float[Array, "n d"]:
    """The `INITIAL_ROWS` rows of a chunk; the last one may go past the table's end.

    Args:
        table: table, or one that differs from it in name and number of rows only.
        key: key of the seed.
        name: hash of the table's name.
        number: number of the chunk.
        bound: the table's `Table.initial_bound`.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, name), number)
    return table.initial_rows(key, INITIAL_ROWS, bound)


def native_initial_slab(
    axes: MeshAxes, slab: Slab, seed: int, given: Mapping[str, object]
) -> dict[str, Array]:
    """A slab's table and optimizer slots, by a native kernel that makes the same values.

    Each device makes its own rows, where they belong. Call under `jax.jit`.

    Args:
        axes: axes of the mesh.
        slab: slab that `kernel_dispatch.has_native_initial_values`.
        seed: seed of all random numbers.
        given: arrays of each table that are given: none.
    """
    assert not any(given.values())
    key = jax.random.key_data(jax.random.key(seed))

    def run(key: Array, pieces: Array) -> dict[str, Array]:
        pieces = pieces[0]
        values = ops.uniform_rows(key, pieces, slab.rows, slab.width, slab.dim, INITIAL_ROWS)
        arrays = {"table": values}
        if slab.optimizer:  # its slots of padding are zeros, as those of `reshard.pack` are
            end = jnp.max(pieces[:, 1] + pieces[:, 2])
            used = jnp.arange(slab.rows, dtype=end.dtype) < end
            for name, slot in slab.optimizer.initial_slots(values).items():
                in_use = used.reshape(-1, *[1] * (slot.ndim - 1))
                arrays[name] = jnp.where(in_use, slot, 0) if slot.ndim else slot
        return arrays

    ndims = {"table": 2, **reshard.slot_ndims(slab)}
    over = reshard.shard_axes(slab, axes)
    return jax.shard_map(
        run,
        mesh=axes.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(over) if over else PartitionSpec()),
        out_specs={name: reshard.slab_spec(slab, axes, n) for name, n in ndims.items()},
        check_vma=False,  # it can't know what the kernel does
    )(key, jnp.asarray(_pieces(slab)))


def _pieces(slab: Slab) -> UInt32[np.ndarray, "S P 7"]:
    """The pieces of each shard as `native.ops.uniform_rows` takes them, padded with empty ones."""
    on_shard: list[list[tuple[Piece, int]]] = [[] for _ in range(slab.shards)]
    for piece, first in slab.on_shards:
        on_shard[piece.shard or 0].append((piece, first))
    found = np.zeros((len(on_shard), max(map(len, on_shard)), 7), np.uint32)
    for shard, pieces in enumerate(on_shard):
        for number, (piece, first) in enumerate(pieces):
            table = slab.tables[piece.table]
            found[shard, number] = (
                zlib.crc32(table.name.encode()),
                first,
                piece.rows(table.rows),
                piece.modulus,
                piece.residue,
                piece.split * slab.width,
                np.float32(table.initial_bound).view(np.uint32),
            )
    return found
