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
from jaxtyping import Bool, Float64

from dlrm_jax.embedding import comm_dtype
from dlrm_jax.embedding.bag_cotangents import BlockCotangents, Sums, one_by_one
from dlrm_jax.embedding.mesh_axes import MeshAxes, copy_axes
from dlrm_jax.embedding.row_sums import RowSums, order_of_sums, sum_all, sum_touched
from dlrm_jax.embedding.row_update import RowOrder
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.errors import UserError


def coalesce(
    slabs: Sequence[Slab],
    blocks: Mapping[str, Sequence[BlockCotangents]],
    axes: MeshAxes,
    sum_duplicates: bool,
    dtype: str | None = None,
    fused_slabs: Container[str] = (),
    row_sums: RowSums = "scatter",
) -> dict[str, tuple[tuple[BlockCotangents, ...], RowOrder]]:
    """The gradients of the rows that the batch touched, equal on all copies of a slab.

    If rows needn't be summed, the result has one gradient per bag, with the rows of the bag. The
    order says what is known of rows: of sums, that no two are equal, at least.

    Args:
        slabs: slabs that the rows belong to.
        blocks: cotangents of each block that reads a slab, by slab name.
        axes: axes of the mesh.
        sum_duplicates: whether to sum the gradients of equal rows even for optimizers that don't
            need it.
        dtype: dtype of cotangents between copies; None keeps their dtype.
        fused_slabs: names of slabs whose updates sum the gradients of equal rows themselves.
        row_sums: way to sum, see `backend.Backend`.
    """
    always = sum_duplicates or row_sums != "scatter"
    found: dict[str, tuple[tuple[BlockCotangents, ...], RowOrder]] = {}
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
                way = reduction(slab.rows, slab.width, ids, bags, copies, slab.needs_sums(always))
                if way.exchanged:
                    sums = one_by_one(_sum_densely(slab.rows, items, between, row_sums))
                    found[slab.name] = sums, "all"
                else:
                    apart.append((slab, way))
        everywhere = _gather_copies([blocks[slab.name] for slab, _ in apart], between, dtype)
        for (slab, way), items in zip(apart, everywhere, strict=True):
            kernel_sums = slab.name in fused_slabs and not sum_duplicates
            unsummed: RowOrder = "any"
            found[slab.name] = (
                (tuple(items), unsummed) if kernel_sums else _sum(slab, items, way, row_sums)
            )
    return found


def sum_rows(
    slab: Slab,
    items: Sequence[BlockCotangents],
    sum_duplicates: bool,
    ids: int,
    row_sums: RowSums,
) -> tuple[tuple[BlockCotangents, ...], RowOrder]:
    """The gradients of the rows of one device, as `coalesce` makes them where there are no copies.

    Args:
        slab: slab of the rows.
        items: rows and gradients.
        sum_duplicates: whether to sum the gradients of equal rows even if the optimizer doesn't
            need it.
        ids: number of ids that decides the way, whatever the size of the items.
        row_sums: way to sum, see `backend.Backend`.

    Returns:
        The gradients, and what is known of their rows.
    """
    needs_sums = slab.needs_sums(sum_duplicates or row_sums != "scatter")
    way = reduction(slab.rows, slab.width, ids, ids, 1, needs_sums)
    return _sum(slab, items, way, row_sums)


def _sum(
    slab: Slab, items: Sequence[BlockCotangents], way: Reduction, row_sums: RowSums
) -> tuple[tuple[BlockCotangents, ...], RowOrder]:
    if way.dense:
        return one_by_one(_sum_densely(slab.rows, items, (), row_sums)), "all"
    if way.dedup:
        return one_by_one(sum_touched(slab.rows, items, row_sums)), order_of_sums(row_sums)
    return tuple(items), "any"


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


def _sum_densely(
    size: int, blocks: Sequence[BlockCotangents], axes: tuple[str, ...], row_sums: RowSums
) -> Sums:
    """Sums the gradients of all rows of a slab that has at most as many rows as there are ids."""
    totals, touched = sum_all(size, blocks, row_sums)
    if axes:  # in one array, because devices wait for each other in each collective
        column = touched[:, None].astype(totals.dtype)
        both = jax.lax.psum(jnp.concatenate([totals, column], axis=1), axes)
        totals, touched = both[:, :-1], both[:, -1]
    number = jnp.arange(size, dtype=jnp.int32)
    return jnp.where(touched > 0, number, size + number), totals
