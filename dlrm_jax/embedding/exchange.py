"""The exchange between the samples of a data-parallel group and the owners of rows, on one device.

These functions run inside `jax.shard_map`; `PerDevice` calls them in order. Shapes: b samples of
one device, M shards of the model axis, N = M·b samples of one group; T bag positions of a block, L
ids per bag, d columns.

The sender turns ids into row numbers of the receiver's slab. An id that is absent or whose row lies
on another shard becomes the number past the slab's last row; -1 would wrap around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlrm_jax.embedding import comm_dtype, row_split
from dlrm_jax.embedding.layout import Block, Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.errors import UserError

# More than the rows of any table.
_IN_NO_TABLE = np.int32(2**31 - 1)


def map_ids(layout: Layout, ids: Int[Array, "b C"]) -> Int[Array, "b C2"]:
    """Appends the columns of mapped ids; absent ids stay absent, present ones stay present."""

    def mapped(source: slice, id_map: Callable[[Array], Array]) -> Array:
        given = ids[:, source]
        ids_of_table = id_map(given)
        kind = ids_of_table.dtype
        if not jnp.issubdtype(kind, jnp.integer):  # it would make all ids floats
            raise UserError(f"id_map: expected integers, got {kind}; use // for /")
        if not jnp.issubdtype(jnp.promote_types(kind, ids.dtype), jnp.integer):
            raise UserError(f"id_map: expected signed integers, got {kind}; cast them")
        found = jnp.where(given >= 0, ids_of_table, np.int32(-1))
        return jnp.where((given >= 0) & (found < 0), _IN_NO_TABLE, found)

    columns = [mapped(source, id_map) for source, id_map in layout.mapped]
    return jnp.concatenate([ids, *columns], axis=1) if columns else ids


def route(block: Block, ids: Int[Array, "b C"]) -> Int[Array, "M b T L"]:
    """The row numbers that each receiver's bag positions read in its slab."""
    row = ids[:, block.column]  # [b, M, T, L]
    limit, modulus, residue, offset = (
        x[:, :, None] for x in (block.limit, block.modulus, block.residue, block.offset)
    )
    present = (row >= 0) & (row < limit)
    if np.any(modulus > 1):
        present &= row_split.is_stored(row, modulus, residue)
        row = row_split.local_row(row, modulus)
    row = jnp.where(present, row + offset, block.slab.rows)
    return row.transpose(1, 0, 2, 3).astype(jnp.int32)


def route_weights(
    block: Block, id_weights: Float[Array, "b C"], rows: Int[Array, "M b T L"], size: int
) -> Float[Array, "M b T L"]:
    """The id weights of the rows that `route` sends; 0 for "no row", a number from ``size`` on."""
    return jnp.where(rows < size, id_weights[:, block.column].transpose(1, 0, 2, 3), 0)


def send_to_owners(
    blocks: Sequence[Block], arrays: Sequence[Array], axes: MeshAxes, dtype: str | None = None
) -> list[Array]:
    """Sends each block's array [M, b, ...] to the owners of its rows, which receive [N, ...].

    Args:
        blocks: blocks; nothing is sent for one of a replicated slab.
        arrays: array of each block, by receiver, all of one dtype.
        axes: axes of the mesh.
        dtype: dtype between devices; None keeps their dtype.
    """
    received = _exchange(blocks, arrays, axes.model, dtype)
    return [x.reshape(-1, *x.shape[2:]) for x in received]


def send_back(
    blocks: Sequence[Block], arrays: Sequence[Array], axes: MeshAxes, dtype: str | None = None
) -> list[Array]:
    """Reverses `send_to_owners`: devices receive [M, b, ...] of their samples, by sender.

    M is 1 for a replicated slab.
    """
    by_receiver = [
        x.reshape(axes.shards if block.slab.sharded else 1, -1, *x.shape[1:])
        for block, x in zip(blocks, arrays, strict=True)
    ]
    return _exchange(blocks, by_receiver, axes.model, dtype)


def _exchange(
    blocks: Sequence[Block], arrays: Sequence[Array], axis: str, dtype: str | None
) -> list[Array]:
    """Sends ``x[m]`` of a sharded block's array to shard m, all blocks in one all-to-all."""
    found = list(arrays)
    sharded = [i for i, block in enumerate(blocks) if block.slab.sharded]
    if not sharded or arrays[sharded[0]].shape[0] == 1:
        return found
    flat = [arrays[i].reshape(*arrays[i].shape[:2], -1) for i in sharded]
    sent = jnp.concatenate(flat, axis=2)
    received = jax.lax.all_to_all(comm_dtype.pack(sent, dtype), axis, 0, 0, tiled=True)
    received = comm_dtype.unpack(received, dtype, sent.dtype)
    ends = np.cumsum([x.shape[2] for x in flat])[:-1]
    for i, x in zip(sharded, jnp.split(received, ends, axis=2), strict=True):
        # The concatenation has the widest dtype of all, which holds each number as it is.
        found[i] = x.reshape(arrays[i].shape).astype(arrays[i].dtype)
    return found


def collect(
    layout: Layout, bag: int, received: Sequence[Float[Array, "_ b _ _"]]
) -> Float[Array, "b _"]:
    """Combines the vectors of one bag, [b, d], from all pieces of its table.

    Args:
        layout: layout of the tables.
        bag: index of the bag.
        received: results of `send_back` by block, [M, b, T, d] with a shard's columns.
    """
    block, shard, position = layout.positions[bag][0]
    if len(layout.positions[bag]) == 1:
        # On one shard this undoes the stack of `pooling`, and XLA leaves both out. It doesn't with
        # an axis of shards, and makes a fusion of each slice: 3 % of a step.
        samples = received[block].shape[1]
        vectors = received[block].reshape(-1, *received[block].shape[2:])
        return vectors[shard * samples : (shard + 1) * samples, position]
    _, shards, positions = (np.array(axis) for axis in zip(*layout.positions[bag], strict=True))
    vectors = received[block][shards, :, positions]
    if layout.blocks[block].slab.split == "columns":
        return jnp.swapaxes(vectors, 0, 1).reshape(vectors.shape[1], -1)
    return vectors.sum(axis=0)


def collect_each(
    layout: Layout, bags: Sequence[int], received: Sequence[Float[Array, "_ b _ _"]]
) -> Float[Array, "b n _"]:
    """The vectors of n bags of one lookup, [b, n, d]: `collect` of each, in one gather.

    Args:
        layout: layout of the tables.
        bags: indices of the bags, whose pieces are those of one table.
        received: see `collect`.
    """
    pieces = np.array([layout.positions[bag] for bag in bags])  # [n, P, 3]
    block = pieces[0, 0, 0]
    if pieces.shape[1] == 1 or np.any(pieces[..., 0] != block):  # slices, which cost nothing
        return jnp.stack([collect(layout, bag, received) for bag in bags], axis=1)
    vectors = received[block][pieces[..., 1], :, pieces[..., 2]]  # [n, P, b, d]
    if layout.blocks[block].slab.split == "columns":
        vectors = vectors.transpose(2, 0, 1, 3)
        return vectors.reshape(*vectors.shape[:2], -1)
    return jnp.swapaxes(vectors.sum(axis=1), 0, 1)


def spread(block: Block, cotangents: Sequence[Float[Array, "b _"]]) -> Float[Array, "_ b _ _"]:
    """Reverses `collect`: gives the cotangents of each receiver's bags, [M, b, T, d].

    Args:
        block: block to fill; its padding gets zeros.
        cotangents: cotangents of all bags, [b, d] each, in the order of the bags.
    """
    members = np.unique(block.bag[block.bag >= 0])
    needed = [cotangents[i] for i in members]
    index = np.searchsorted(members, block.bag)
    if np.any(block.bag < 0):
        needed.append(jnp.zeros_like(needed[0]))
        index = np.where(block.bag < 0, len(members), index)
    if block.slab.split == "columns":  # every receiver has all bags, and gets its columns
        shards = block.bag.shape[0]
        whole = jnp.stack([needed[i] for i in index[0]], axis=1)  # [b, T, shards · d]
        return jnp.moveaxis(whole.reshape(*whole.shape[:2], shards, -1), 2, 0)
    if block.bag.shape[0] == 1:  # no receiver but this device: a bag for each position
        return jnp.stack([needed[i] for i in index[0]], axis=1)[None]
    return jnp.stack(needed, axis=0)[index].transpose(0, 2, 1, 3)
