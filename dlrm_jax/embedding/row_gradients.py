"""Gradients of the touched rows, summed over the batch, on one device inside `jax.shard_map`.

They are computed from the cotangents of the pooled vectors, outside of autodiff, whose gradient of
a table would be as large as the table. Memory grows with the ids of a batch, not with the rows of a
table.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int

from dlrm_jax.embedding import comm_dtype
from dlrm_jax.embedding.mesh_axes import MeshAxes, copy_axes
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.errors import UserError

BlockCotangents = tuple[Int[Array, "_ _ _"], Float[Array, "_ _ _"] | None, Float[Array, "_ _ _"]]
"""One block's rows [N, T, L], id weights [N, T, L] or None, and cotangents [N, T, d]."""

Sums = tuple[Int[Array, " K"], Float[Array, "K d"]]
"""Different rows, with numbers past the slab's end for "no row", and their gradients."""


def coalesce(
    slabs: Sequence[Slab],
    blocks: Mapping[str, Sequence[BlockCotangents]],
    axes: MeshAxes,
    sum_duplicates: bool,
    dtype: str | None = None,
    native_slabs: Container[str] = (),
) -> dict[str, tuple[BlockCotangents, ...]]:
    """The gradients of the rows that the batch touched, equal on all copies of a slab.

    If rows needn't be summed, the result has one gradient per bag, with the rows of the bag.

    Args:
        slabs: slabs that the rows belong to.
        blocks: cotangents of each block that reads a slab, by slab name.
        axes: axes of the mesh.
        sum_duplicates: whether to sum the gradients of equal rows even for optimizers that don't
            need it.
        dtype: dtype of cotangents between copies; None keeps their dtype.
        native_slabs: names of slabs whose updates sum the gradients of equal rows themselves.
    """
    found: dict[str, tuple[BlockCotangents, ...]] = {}
    for sharded in (True, False):
        between = copy_axes(sharded, axes.mesh.shape, axes.data, axes.model)
        copies = math.prod(axes.mesh.shape[axis] for axis in between)
        apart = []  # slabs whose copies exchange cotangents
        for slab in slabs:
            if slab.sharded == sharded:
                items = blocks[slab.name]
                ids = copies * sum(rows.size for rows, _, _ in items)
                bags = copies * sum(rows[:, :, 0].size for rows, _, _ in items)
                if slab.rows + ids >= 2**31:  # each id may need a number of its own for "no row"
                    raise UserError(
                        f"table(s) {', '.join(slab.tables)}: one step gives a device {ids:,} ids "
                        f"(padding included) of {slab.rows:,} rows, and the sum must be below "
                        f"2^31; make the batch smaller"
                    )
                way = reduction(
                    slab.rows, slab.width, ids, bags, copies, slab.needs_sums(sum_duplicates)
                )
                if way.exchanged:
                    found[slab.name] = one_by_one(_sum_densely(slab.rows, items, between))
                else:
                    apart.append((slab, way))
        everywhere = _gather_copies([blocks[slab.name] for slab, _ in apart], between, dtype)
        for (slab, way), items in zip(apart, everywhere, strict=True):
            kernel_sums = slab.name in native_slabs and not sum_duplicates
            found[slab.name] = tuple(items) if kernel_sums else _sum(slab, items, way)
    return found


def sum_rows(
    slab: Slab, items: Sequence[BlockCotangents], sum_duplicates: bool, ids: int
) -> tuple[BlockCotangents, ...]:
    """The gradients of the rows of one device, as `coalesce` makes them where there are no copies.

    Args:
        slab: slab of the rows.
        items: rows and gradients.
        sum_duplicates: whether to sum the gradients of equal rows even if the optimizer doesn't
            need it.
        ids: number of ids that decides the way, whatever the size of the items.
    """
    needs_sums = slab.needs_sums(sum_duplicates)
    return _sum(slab, items, reduction(slab.rows, slab.width, ids, ids, 1, needs_sums))


def _sum(
    slab: Slab, items: Sequence[BlockCotangents], way: Reduction
) -> tuple[BlockCotangents, ...]:
    if way.dense:
        return one_by_one(_sum_densely(slab.rows, items, ()))
    if way.dedup:
        return one_by_one(_coalesce_rows(slab.rows, *expand(items)))
    return tuple(items)


class Reduction(NamedTuple):
    """The way in which gradients of a slab's rows are summed; if all are False, they aren't.

    Attributes:
        exchanged: whether copies add up their sums of all rows, instead of exchanging cotangents;
            it implies ``dense``.
        dense: whether all rows are summed, touched or not.
        dedup: whether equal rows are found and their gradients summed.
    """

    exchanged: bool | np.bool | Bool[np.ndarray, "*O"]
    dense: bool | np.bool | Bool[np.ndarray, "*O"]
    dedup: bool | np.bool | Bool[np.ndarray, "*O"]


def reduction(
    rows: int | Float64[np.ndarray, "*O"],
    width: int,
    ids: int | Float64[np.ndarray, "*O"],
    bags: int | Float64[np.ndarray, "*O"],
    copies: int,
    needs_sums: bool,
) -> Reduction:
    """The cheapest way to make the gradients of a slab's rows equal on all copies.

    Args:
        rows: rows of the slab on one device.
        width: width of a row on one device.
        ids: number of ids that all copies look up there, padding included.
        bags: number of bags of these ids.
        copies: number of copies that see different samples.
        needs_sums: whether the update needs the summed gradient of each row.
    """
    # A bag has its ids and one cotangent: for long bags far less than a gradient for each id.
    exchanged = (copies > 1) & (rows * (width + 1) <= ids + bags * width)
    dense = exchanged | (rows <= ids)
    return Reduction(exchanged, dense, needs_sums & np.logical_not(dense))


def _gather_copies(
    slabs: Sequence[Sequence[BlockCotangents]], axes: tuple[str, ...], dtype: str | None
) -> Sequence[Sequence[BlockCotangents]]:
    """Gathers the cotangents of all copies, in the order of the samples.

    One collective carries all arrays with numbers of one width: with small batches the number of
    collectives costs more than their bytes.
    """
    if not axes:
        return slabs
    packed = [[(rows, w, comm_dtype.pack(g, dtype)) for rows, w, g in items] for items in slabs]
    leaves, structure = jax.tree.flatten(packed)
    for width in sorted({leaf.dtype.itemsize for leaf in leaves}):
        same = [i for i, leaf in enumerate(leaves) if leaf.dtype.itemsize == width]
        sent = [comm_dtype.bits(leaves[i]).reshape(len(leaves[i]), -1) for i in same]
        gathered = jax.lax.all_gather(jnp.concatenate(sent, axis=1), axes, axis=0, tiled=True)
        ends = np.cumsum([x.shape[1] for x in sent])[:-1]
        for i, received in zip(same, jnp.split(gathered, ends, axis=1), strict=True):
            own = jax.lax.bitcast_convert_type(received, leaves[i].dtype)
            leaves[i] = own.reshape(-1, *leaves[i].shape[1:])
    return [
        [
            (rows, w, comm_dtype.unpack(g, dtype, own.dtype))
            for (rows, w, g), (_, _, own) in zip(items, before, strict=True)
        ]
        for items, before in zip(jax.tree.unflatten(structure, leaves), slabs, strict=True)
    ]


def one_by_one(sums: Sums) -> tuple[BlockCotangents, ...]:
    """Sums as bags of one row each."""
    rows, gradients = sums
    return ((rows[:, None, None], None, gradients[:, None]),)


def expand(
    blocks: Sequence[BlockCotangents],
) -> tuple[Int[Array, " K"], Float[Array, "K d"]]:
    """The row and the gradient of each id: its bag's cotangent times its weight."""
    all_rows, all_gradients = [], []
    for rows, weights, cotangents in blocks:
        shape = (*rows.shape, cotangents.shape[-1])
        gradients = jnp.broadcast_to(cotangents[:, :, None], shape)
        if weights is not None:
            gradients = gradients * weights[..., None]
        all_rows.append(rows.reshape(-1))
        all_gradients.append(gradients.reshape(-1, shape[-1]))
    return jnp.concatenate(all_rows), jnp.concatenate(all_gradients)


def _sum_densely(size: int, blocks: Sequence[BlockCotangents], axes: tuple[str, ...]) -> Sums:
    """Sums the gradients of all rows of a slab that has at most as many rows as there are ids."""
    rows, gradients = expand(blocks)
    totals = jnp.zeros((size, gradients.shape[1]), gradients.dtype)
    totals = totals.at[rows].add(gradients, mode="drop")
    touched = jnp.zeros(size, jnp.int32).at[rows].max(1, mode="drop")
    if axes:  # in one array, because devices wait for each other in each collective
        column = touched[:, None].astype(totals.dtype)
        both = jax.lax.psum(jnp.concatenate([totals, column], axis=1), axes)
        totals, touched = both[:, :-1], both[:, -1]
    number = jnp.arange(size, dtype=jnp.int32)
    return jnp.where(touched > 0, number, size + number), totals


def _coalesce_rows(size: int, rows: Int[Array, " K"], gradients: Float[Array, "K d"]) -> Sums:
    """Sums the gradients of equal rows."""
    index = jnp.arange(rows.size, dtype=jnp.int32)
    representative = dedup(size, rows)
    totals = jnp.zeros_like(gradients).at[representative].add(gradients, mode="drop")
    # Numbers for "no row" all differ, so that no two of the returned rows are equal.
    return jnp.where(representative == index, rows, size + index), totals


# Entries of the scratch per occurrence; with as many, nearly all rows have an entry alone.
_ENTRIES = 8
_GOLDEN = np.uint32(2654435769)  # 2³² over the golden ratio, as in Fibonacci hashing


def dedup(size: int, rows: Int[Array, " K"]) -> Int[Array, " K"]:
    """The index of one representative for each occurrence of a row, [K]; K for "no row".

    It doesn't sort. Every occurrence writes its index to the entry of a scratch that its row is
    hashed to, and reads the entry back. If the index there, whichever won, has the same row, it
    represents the row. The few others try again with another hash; each round settles at least one
    row of each entry in use.

    Args:
        size: number of rows of the slab; row numbers from it on mean "no row".
        rows: row number of each occurrence, [K], not negative.
    """
    count = rows.size
    bits = min(math.ceil(math.log2(max(_ENTRIES * count, 2))), 30)  # numbers of entries are int32
    index = jnp.arange(count, dtype=jnp.int32)
    nothing = jnp.full(count, count, jnp.int32)

    def settle(entries: int, entry: Int[Array, " K"], found: Int[Array, " K"]) -> Array:
        scratch = jnp.zeros(entries, jnp.int32).at[entry].set(index, mode="drop")
        winner = scratch.at[entry].get(mode="fill", fill_value=count)
        same = rows.at[winner].get(mode="fill", fill_value=-1) == rows
        return jnp.where(same, winner, found)

    if size <= 2**bits:  # each row has an entry of its own
        return settle(size, rows, nothing)

    def is_open(found: Int[Array, " K"]) -> Array:
        return (found == count) & (rows < size)

    def next_round(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        multiplier, found = carry
        hashed = ((rows.astype(jnp.uint32) * multiplier) >> np.uint32(32 - bits)).astype(jnp.int32)
        entry = jnp.where(is_open(found), hashed, 2**bits)
        return multiplier * _GOLDEN, settle(2**bits, entry, found)

    start = (jnp.asarray(_GOLDEN), nothing)
    return jax.lax.while_loop(lambda carry: is_open(carry[1]).any(), next_round, start)[1]
