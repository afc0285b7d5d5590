"""The exchange on one device: ids to pooled vectors, and cotangents to the rows' owners.

These functions run inside `jax.shard_map`. Shapes: b samples of one device, M shards of the model
axis, N = M·b samples of one data group; T bag positions of a block, L ids per bag, d columns.

1. Route, at the sender: ids become row numbers of the receiver's slab. An id that is absent or lies
   on another shard becomes the number past the slab's last row; -1 would wrap around.
2. Lookup: all-to-all of row numbers, gather and pool, all-to-all of pooled vectors.
3. Cotangents: all-to-all to the shards that own the rows, as for the row numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.embedding import comm_dtype
from dlrm_jax.embedding.kernel_dispatch import has_native_lookup
from dlrm_jax.embedding.layout import Block, Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.storage_dtype import decode
from dlrm_jax.embedding.table import Lookup
from dlrm_jax.errors import UserError
from dlrm_jax.native import ops

# Most bag positions that are gathered one by one, see `_gather_by_position`; more compile slowly.
_POSITIONS = 64

# More than the rows of any table.
_IN_NO_TABLE = np.int32(2**31 - 1)


def lookup(
    layout: Layout,
    lookups: Sequence[Lookup],
    slabs: Mapping[str, Array],
    ids: Int[Array, "b C"],
    id_weights: Float[Array, "b C"] | None,
    axes: MeshAxes,
    dtype: str | None = None,
    native: bool = False,
) -> tuple[dict[str, Array], list[Array], list[Array] | None, dict[str, Array]]:
    """Looks up the ids of this device's samples.

    Args:
        layout: layout of the tables.
        lookups: lookups in the order of the layout.
        slabs: this device's part of each slab, by name.
        ids: ids of this device's samples, [b, C].
        id_weights: weight of each id, [b, C], or None.
        axes: axes of the mesh.
        dtype: dtype of vectors between devices; None keeps their dtype.
        native: whether native kernels may be used, see `has_native_lookup`.

    Returns:
        Pooled vectors by lookup, [b, d] or, for a sequence, [b, L, d]; row numbers [N, T, L] that
        this device looks up, by block, and their weights; denominators [b] by lookup with mean
        pooling.
    """
    blocks = layout.blocks
    ids = map_ids(layout, ids)
    if id_weights is not None:
        mapped = [id_weights[:, source] for source, _ in layout.mapped]
        id_weights = jnp.concatenate([id_weights, *mapped], axis=1)
    sent = [route(block, ids) for block in blocks]
    rows = at_owner(blocks, sent, axes)
    at_rows = None
    if id_weights is not None:
        weights = [route_weights(b, id_weights, x) for b, x in zip(blocks, sent, strict=True)]
        at_rows = at_owner(blocks, weights, axes)
    vectors = []
    for i, block in enumerate(blocks):
        slab, weights = slabs[block.slab.name], None if at_rows is None else at_rows[i]
        if native and has_native_lookup(block):
            vectors.append(ops.pool(slab, rows[i], weights))
        else:
            vectors.append(pool(slab, rows[i], weights, block.slab.dtype))
    received = at_sample(blocks, vectors, axes, dtype)

    pooled, denominators = {}, {}
    for i, each in enumerate(lookups):
        columns = layout.columns[i]
        unknown = ids[:, columns] >= layout.table(each.table).rows
        if each.pooling == "none":
            bags = layout.bags[i]
            sequence = jnp.stack([collect(layout, bag, received, len(ids)) for bag in bags], axis=1)
            pooled[each.name] = jnp.where(unknown[:, :, None], jnp.nan, sequence)
            continue
        vector = collect(layout, layout.bags[i][0], received, len(ids))
        if each.pooling == "mean":
            own = None if id_weights is None else id_weights[:, columns]
            total = weight_sums(ids[:, columns], own, vector.dtype)
            denominators[each.name] = jnp.where(total == 0, jnp.inf, total)
            vector = vector / denominators[each.name][:, None]
        pooled[each.name] = jnp.where(jnp.any(unknown, axis=1)[:, None], jnp.nan, vector)
    return pooled, rows, at_rows, denominators


def send_cotangents(
    lookups: Sequence[Lookup],
    blocks: Sequence[Block],
    denominators: Mapping[str, Array],
    cotangents: Mapping[str, Array],
    axes: MeshAxes,
    dtype: str | None = None,
) -> list[Array]:
    """Sends the cotangents of pooled vectors to the owners of the rows, [N, T, d] by block."""
    of_bags: list[Array] = []
    for each in lookups:
        cotangent = cotangents[each.name]
        if each.pooling == "none":
            of_bags += [cotangent[:, position] for position in range(cotangent.shape[1])]
        elif each.pooling == "mean":
            of_bags.append(cotangent / denominators[each.name][:, None])
        else:
            of_bags.append(cotangent)
    return at_owner(blocks, [spread(block, of_bags) for block in blocks], axes, dtype)


def map_ids(layout: Layout, ids: Int[Array, "b C"]) -> Int[Array, "b C2"]:
    """Appends the columns of mapped ids; absent ids stay absent, present ones stay present."""

    def mapped(source: slice, id_map: Callable[[Array], Array]) -> Array:
        given = ids[:, source]
        ids_of_table = id_map(given)
        if not jnp.issubdtype(ids_of_table.dtype, jnp.integer):  # it would make all ids floats
            raise UserError(f"id_map: expected integers, got {ids_of_table.dtype}; use // for /")
        found = jnp.where(given >= 0, ids_of_table, np.int32(-1))
        return jnp.where((given >= 0) & (found < 0), _IN_NO_TABLE, found)

    columns = [mapped(source, id_map) for source, id_map in layout.mapped]
    return jnp.concatenate([ids, *columns], axis=1) if columns else ids


def route(block: Block, ids: Int[Array, "b C"]) -> Int[Array, "M b T L"]:
    """The row numbers that each receiver's bag positions read in its slab."""
    taken = ids[:, block.column]  # [b, M, T, L]
    present = (taken >= 0) & (taken < block.limit[:, :, None])
    row = taken
    if np.any(block.modulus > 1):
        present &= taken % block.modulus[:, :, None] == block.residue[:, :, None]
        row = taken // block.modulus[:, :, None]
    row = jnp.where(present, row + block.offset[:, :, None], block.slab.rows)
    return row.transpose(1, 0, 2, 3).astype(jnp.int32)


def route_weights(
    block: Block, weights: Float[Array, "b C"], rows: Int[Array, "M b T L"]
) -> Float[Array, "M b T L"]:
    """The weights of the rows that `route` sends; 0 for "no row"."""
    return jnp.where(rows < block.slab.rows, weights[:, block.column].transpose(1, 0, 2, 3), 0)


def exchange(parts: Sequence[Array], axis: str, dtype: str | None = None) -> list[Array]:
    """Sends ``part[m]`` to shard m and returns the parts from all shards, in one all-to-all.

    Args:
        parts: arrays [M, b, ...] of one dtype.
        axis: name of the model axis.
        dtype: dtype between devices; None keeps their dtype.
    """
    if not parts or parts[0].shape[0] == 1:
        return list(parts)
    flat = [part.reshape(*part.shape[:2], -1) for part in parts]
    sent = jnp.concatenate(flat, axis=2)
    received = jax.lax.all_to_all(comm_dtype.pack(sent, dtype), axis, 0, 0, tiled=True)
    received = comm_dtype.unpack(received, dtype, sent.dtype)
    ends = np.cumsum([part.shape[2] for part in flat])[:-1]
    pieces = jnp.split(received, ends, axis=2)
    return [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def at_owner(
    blocks: Sequence[Block], sent: Sequence[Array], axes: MeshAxes, dtype: str | None = None
) -> list[Array]:
    """Sends each block's [M, b, ...] by receiver to [N, ...] at the owners of its rows."""
    parts = [x for b, x in zip(blocks, sent, strict=True) if b.slab.sharded]
    received = iter(exchange(parts, axes.model, dtype))
    mine = [next(received) if b.slab.sharded else x for b, x in zip(blocks, sent, strict=True)]
    return [x.reshape(-1, *x.shape[2:]) for x in mine]


def at_sample(
    blocks: Sequence[Block], vectors: Sequence[Array], axes: MeshAxes, dtype: str | None = None
) -> list[Array]:
    """Sends each block's [N, T, d] at the owners of its rows to [N, T, d] at the samples' owners.

    The first b are from shard 0, the next from shard 1. N is b for a replicated slab.
    """
    away = [x for b, x in zip(blocks, vectors, strict=True) if b.slab.sharded]
    parts = [x.reshape(axes.shards, -1, *x.shape[1:]) for x in away]
    received = (x.reshape(-1, *x.shape[2:]) for x in exchange(parts, axes.model, dtype))
    return [next(received) if b.slab.sharded else x for b, x in zip(blocks, vectors, strict=True)]


def pool(
    slab: Shaped[Array, "R d"],
    rows: Int[Array, "N T L"],
    weights: Float[Array, "N T L"] | None,
    dtype: np.dtype | None = None,
) -> Float[Array, "N T d"]:
    """Sums the weighted rows of every bag position, in at least float32; "no row" adds 0.

    Args:
        slab: this device's part of a slab, in its storage dtype.
        rows: row numbers; R or more stands for "no row".
        weights: weights of the rows; None for ones.
        dtype: dtype of the table; None if it is the storage dtype.
    """
    kind = dtype or slab.dtype
    wide = jnp.promote_types(kind, jnp.float32)

    def weighted(stored: Shaped[Array, "N T d"], position: Any) -> Float[Array, "N T d"]:
        vectors = decode(stored, kind).astype(wide)
        return vectors if weights is None else vectors * weights[:, :, position, None]

    def at(position: int | Int[Array, ""]) -> Float[Array, "N T d"]:
        return weighted(_gather(slab, rows[:, :, position]), position)

    if rows.shape[2] == 1 and rows.shape[1] <= _POSITIONS:
        return weighted(_gather_by_position(slab, rows[:, :, 0]), 0)
    # A loop over the ids of a bag makes no array of [N, T, L, d], which is slow for long bags.
    return jax.lax.fori_loop(1, rows.shape[2], lambda i, total: total + at(i), at(0))


def _gather(slab: Shaped[Array, "R d"], rows: Int[Array, "*N"]) -> Shaped[Array, "*N d"]:
    return slab.at[rows].get(mode="fill", fill_value=0)


def _gather_by_position(
    slab: Shaped[Array, "R d"], rows: Int[Array, "N T"]
) -> Shaped[Array, "N T d"]:
    """`_gather`, on a CPU one bag position after the other.

    One gather of all positions needs a copy afterwards: predictions for 2048 or 8192 samples with
    26 tables x 16 took 3 to 7 % longer, a train step 1 to 2 %. In the loop over long bags one
    gather is much faster, and an accelerator would start many small programs instead of one.
    """

    def by_position(slab: Array, rows: Array) -> Array:
        return jnp.stack([_gather(slab, rows[:, t]) for t in range(rows.shape[1])], axis=1)

    return jax.lax.platform_dependent(slab, rows, cpu=by_position, default=_gather)


def collect(
    layout: Layout, bag: int, received: Sequence[Float[Array, "_ _ _"]], samples: int
) -> Float[Array, "{samples} _"]:
    """Combines the vectors of one bag, [b, d], from all pieces of its table.

    Args:
        layout: layout of the tables.
        bag: index of the bag.
        received: results of `at_sample` by block, [N, T, d] with a shard's columns.
        samples: number b of this device's samples.
    """
    parts = layout.parts[bag]
    index, shard, position = parts[0]
    vectors = received[index]
    if len(parts) == 1:
        # On one shard this undoes the stack of `_gather_by_position`, and XLA leaves both out.
        return vectors[shard * samples : (shard + 1) * samples, position]
    _, shards, positions = (np.array(axis) for axis in zip(*parts, strict=True))
    by_shard = vectors.reshape(len(layout.blocks[index].bag), samples, *vectors.shape[1:])
    pieces = by_shard[shards, :, positions]
    if layout.blocks[index].slab.split == "columns":
        return jnp.swapaxes(pieces, 0, 1).reshape(pieces.shape[1], -1)
    return pieces.sum(axis=0)


def spread(block: Block, cotangents: Sequence[Float[Array, "b _"]]) -> Float[Array, "_ b _ _"]:
    """Reverses `collect`: gives the cotangents of each receiver's bags, [M, b, T, d].

    Args:
        block: block to fill; padding positions get zeros.
        cotangents: cotangents of all bags, [b, d] each, in the order of the bags.
    """
    members = np.unique(block.bag[block.bag >= 0])
    rows = [cotangents[i] for i in members]
    index = np.searchsorted(members, block.bag)
    if np.any(block.bag < 0):
        rows.append(jnp.zeros_like(rows[0]))
        index = np.where(block.bag < 0, len(members), index)
    if block.slab.split == "columns":  # every receiver has all bags, and gets its columns
        shards = block.bag.shape[0]
        whole = jnp.stack([rows[i] for i in index[0]], axis=1)  # [b, T, shards · d]
        return jnp.moveaxis(whole.reshape(*whole.shape[:2], shards, -1), 2, 0)
    if block.bag.shape[0] == 1:  # no receiver but this device: the bag positions are the members
        return jnp.stack([rows[i] for i in index[0]], axis=1)[None]
    return jnp.stack(rows, axis=0)[index].transpose(0, 2, 1, 3)


def weight_sums(
    ids: Int[Array, "b L"], weights: Float[Array, "b L"] | None, dtype: jnp.dtype
) -> Float[Array, " b"]:
    """The sum of weights over the ids that are present, the denominator of a mean."""
    present = ids >= 0
    return jnp.sum(present if weights is None else jnp.where(present, weights, 0), 1, dtype=dtype)
