"""Where rows of tables lie in the parts of a slab on its devices, and writing them there."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, Shaped

from dlrm_jax.embedding import packed_rows, row_split
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.reshard import shard_axes, slab_spec, slot_ndims
from dlrm_jax.embedding.slab import Slab

NO_ROW = np.iinfo(np.int32).max
"""The number of a row that pads others: it is written nowhere."""


def leaf_specs(slab: Slab, axes: MeshAxes) -> dict[str, PartitionSpec]:
    """The split of each optimizer slot of a slab, by name."""
    return {name: slab_spec(slab, axes, ndim) for name, ndim in slot_ndims(slab).items()}


def shard_index(slab: Slab, axes: MeshAxes) -> int | Int[Array, ""]:
    """The number of this device's part of a slab; call it in a `jax.shard_map`."""
    over = shard_axes(slab, axes)
    return jax.lax.axis_index(over) if over else 0


def local_rows(
    slab: Slab,
    tables: Sequence[str],
    numbers: Int[Array, " K"],
    rows: Int[Array, " K"],
    shard: int | Int[Array, ""],
) -> Int[Array, " K"]:
    """Row numbers in a shard's part of a slab; past its end for rows that aren't there.

    Args:
        slab: slab.
        tables: names of tables, some of which lie in the slab.
        numbers: place of each row's table in these names.
        rows: rows of these tables; `NO_ROW` for none.
        shard: number of the part.
    """
    places = np.zeros((slab.shards, len(tables), 4), np.int32)
    places[:, :, 1] = 1
    for piece, start in slab.on_shards:
        if piece.table in tables:
            place = start, piece.modulus, piece.residue, slab.tables[piece.table].rows
            places[piece.shard or 0, tables.index(piece.table)] = place
    start, modulus, residue, end = jnp.asarray(places)[shard][numbers].T
    is_here = (rows < end) & row_split.is_stored(rows, modulus, residue)
    return jnp.where(is_here, start + row_split.local_row(rows, modulus), slab.rows)


def set_rows(
    slab: Slab,
    array: Shaped[Array, "R *d"],
    rows: Int[Array, " K"],
    new: Shaped[Array, "K *dim"],
    shard: int | Int[Array, ""],
) -> Shaped[Array, "R *d"]:
    """A shard's array with these rows set, see `local_rows`, of whole new ones."""
    if array.ndim == 2 and slab.split == "columns":
        new = jax.lax.dynamic_slice_in_dim(new, shard * slab.width, slab.width, axis=1)
    if slab.packed and array.ndim == 2:
        return packed_rows.put(array, rows, new)
    return array.at[rows].set(new, mode="drop")
