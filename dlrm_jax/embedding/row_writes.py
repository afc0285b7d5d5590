"""Some rows of tables and their optimizer state, written in place, on any mesh and plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int32

from dlrm_jax.embedding.integer_arrays import row_numbers
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.reshard import slab_sharding, slab_spec, slot_ndims
from dlrm_jax.embedding.row_places import NO_ROW, leaf_specs, local_rows, set_rows, shard_index
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.embedding.table_io import state_specs
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import put_whole

CHUNK = 4096
"""Rows that one call of a program writes; a call with fewer takes as long."""

Arrays = Mapping[str, np.ndarray]


class RowWrites:
    """The programs that write rows, one for each slab, compiled once for all numbers of rows.

    Args:
        axes: axes of the mesh.
        layout: layout of all tables.
    """

    def __init__(self, axes: MeshAxes, layout: Layout):
        self._axes, self._layout = axes, layout
        self._programs: dict[str, Any] = {}

    def __call__(
        self, state: EmbeddingState, rows: Mapping[str, Any], values: Mapping[str, Arrays]
    ) -> EmbeddingState:
        """See `EmbeddingCollection.write_rows`."""
        self._layout.check(state)
        tables, slots = dict(state.tables), dict(state.slots)
        for slab in self._layout.slabs:
            names = [name for name in slab.tables if name in rows]
            if not names:
                continue
            scalars = {key for key, ndim in slot_ndims(slab).items() if not ndim}
            leaves = {"table": tables[slab.name], **slots.get(slab.name, {})}
            written = {key: x for key, x in leaves.items() if key not in scalars}
            specs = {key: ((slab.dim,)[: x.ndim - 1], x.dtype) for key, x in written.items()}
            for chunk, new in _chunks(slab, specs, names, rows, values):
                written = self._program(slab)(written, chunk, new)
            for key in scalars:
                given = values[names[0]][key]
                written[key] = put_whole(given, slab_sharding(self._axes, slab, given.shape))
            tables[slab.name] = written.pop("table")
            if slab.optimizer:
                slots[slab.name] = written
        return EmbeddingState(tables, slots, state.layout)

    def _program(self, slab: Slab) -> Any:
        if slab.name not in self._programs:
            specs = state_specs(self._axes, self._layout)
            leaves = {"table": specs.tables[slab.name], **specs.slots.get(slab.name, {})}
            ndims = {"table": 2, **slot_ndims(slab)}
            shardings = {key: x.sharding for key, x in leaves.items() if ndims[key]}
            split = {"table": slab_spec(slab, self._axes), **leaf_specs(slab, self._axes)}
            split = {key: split[key] for key in shardings}

            def write(leaves: Any, chunk: Int32[Array, "2 K"], new: Any) -> Any:
                shard = shard_index(slab, self._axes)
                local = local_rows(slab, [*slab.tables], chunk[0], chunk[1], shard)
                return {
                    key: set_rows(slab, array, local, new[key], shard)
                    for key, array in leaves.items()
                }

            def run(leaves: Any, chunk: Int32[Array, "2 K"], new: Any) -> Any:
                return jax.shard_map(
                    write,
                    mesh=self._axes.mesh,
                    in_specs=(split, PartitionSpec(), PartitionSpec()),
                    out_specs=split,
                    check_vma=False,  # it can't know that copies are given the same values
                )(leaves, chunk, new)

            self._programs[slab.name] = jax.jit(run, donate_argnums=0, out_shardings=shardings)
        return self._programs[slab.name]


def _chunks(
    slab: Slab,
    specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    names: Sequence[str],
    rows: Mapping[str, Any],
    values: Mapping[str, Arrays],
) -> Iterator[tuple[Int32[np.ndarray, "2 K"], dict[str, np.ndarray]]]:
    """Numbers of tables and rows of these, padded with `NO_ROW`, and the arrays of the rows."""
    order = [*slab.tables]
    rows = {name: row_numbers(name, rows[name], slab.tables[name].rows) for name in names}
    for name in names:
        numbers, given = rows[name], values[name]
        for key, (width, _) in specs.items():
            if given[key].shape != (len(numbers), *width):
                raise UserError(
                    f"values: expected {key} of {len(numbers)} rows of table {name}, got shape "
                    f"{given[key].shape}"
                )
    counts = [len(rows[name]) for name in names]
    of_table = np.repeat([order.index(name) for name in names], counts)
    whole = np.stack([of_table, np.concatenate([rows[name] for name in names])]).astype(np.int32)
    arrays = {
        key: np.concatenate([values[name][key].view(dtype) for name in names])
        for key, (_, dtype) in specs.items()
    }
    for start in range(0, whole.shape[1], CHUNK):
        chunk = whole[:, start : start + CHUNK]
        padding = CHUNK - chunk.shape[1]
        yield (
            np.pad(chunk, ((0, 0), (0, padding)), constant_values=((0, 0), (0, NO_ROW))),
            {
                key: np.pad(
                    array[start : start + CHUNK], [(0, padding)] + [(0, 0)] * (array.ndim - 1)
                )
                for key, array in arrays.items()
            },
        )
