"""Rows of tables and their optimizer state that change places with others, on any mesh and plan.

A program gives rows new values in place and returns those that they had. Devices run it behind the
step before, and ahead of the next one; the host needn't wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, Int32, Shaped

from dlrm_jax.embedding import packed_rows
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.reshard import shard_axes, slab_spec, slot_ndims
from dlrm_jax.embedding.row_places import NO_ROW, leaf_specs, local_rows, set_rows, shard_index
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.embedding.table_io import state_specs
from dlrm_jax.mesh import put_whole

LEAST_ROWS = 256
"""Rows of the smallest program; others have twice as many as the next smaller one."""

Values = Mapping[str, Mapping[str, np.ndarray]]
"""Arrays of rows, by table and by ``"table"`` or the name of an optimizer slot."""


class PlacedRows(NamedTuple):
    """New rows of a slab on the devices.

    Attributes:
        counts: number of rows of each table, by name, in their order here.
        rows: numbers of the tables in the slab, and of their rows, [2, K], padded with `NO_ROW`.
        new: new values by ``"table"`` or slot, [K, d] or [K].
    """

    counts: Mapping[str, int]
    rows: Int32[Array, "2 K"]
    new: Mapping[str, Shaped[Array, "K *d"]]

    @property
    def nbytes(self) -> int:
        """Bytes of the values, padding included."""
        return sum(x.nbytes for x in self.new.values())


class OldRows(NamedTuple):
    """The values that rows had, which devices may be about to send.

    Attributes:
        layout: layout of the tables.
        of_slabs: numbers of rows and their values, by slab.
    """

    layout: Layout
    of_slabs: Mapping[str, tuple[Mapping[str, int], Mapping[str, Array]]]

    @property
    def is_ready(self) -> bool:
        """Whether `read` doesn't wait for a device."""
        arrays: list[Any] = [x for _, old in self.of_slabs.values() for x in old.values()]
        return all(x.is_ready() for x in arrays)

    def read(self) -> dict[str, dict[str, np.ndarray]]:
        """The values by table and name, [n, d] or [n], of the dtypes of the tables."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for counts, old in self.of_slabs.values():
            arrays = {key: np.asarray(x) for key, x in old.items()}
            first = 0
            for name, count in counts.items():
                own = {key: x[first : first + count] for key, x in arrays.items()}
                dtype = self.layout.slab_of(name).dtype
                found[name] = own | {"table": own["table"].view(dtype)}
                first += count
        return found


class RowSwaps:
    """The programs that swap rows: one for each slab and number of rows, a power of two.

    Args:
        axes: axes of the mesh.
        layout: layout of all tables.
    """

    def __init__(self, axes: MeshAxes, layout: Layout):
        self._axes, self._layout = axes, layout
        self._programs: dict[tuple[str, bool], Any] = {}

    def place(
        self, rows: Mapping[str, Int[np.ndarray, " n"]], values: Values
    ) -> dict[str, PlacedRows]:
        """Places new rows on the devices, by slab; any thread may.

        Args:
            rows: numbers of rows by table, each once.
            values: arrays of these rows, of the tables' dtypes; those of slots may be left out.
        """
        found = {}
        whole = self._axes.sharding(PartitionSpec())
        for slab in self._layout.slabs:
            counts = {name: len(rows[name]) for name in slab.tables if name in rows}
            total = sum(counts.values())
            if not total:
                continue
            size = max(LEAST_ROWS, 1 << (total - 1).bit_length())
            order = [*slab.tables]
            numbers = np.full((2, size), NO_ROW, np.int32)
            numbers[0] = 0
            numbers[0, :total] = np.repeat(
                [order.index(name) for name in counts], [*counts.values()]
            )
            np.concatenate([rows[name] for name in counts], out=numbers[1, :total])
            specs = state_specs(self._axes, self._layout)
            dtypes = {"table": specs.tables[slab.name].dtype}
            dtypes |= {key: x.dtype for key, x in specs.slots.get(slab.name, {}).items()}
            new = {}
            for key in values[next(iter(counts))]:
                parts = [values[name][key] for name in counts]
                padded = np.zeros((size, *parts[0].shape[1:]), dtypes[key])
                np.concatenate([x.view(dtypes[key]) for x in parts], out=padded[:total])
                new[key] = put_whole(padded, whole)
            found[slab.name] = PlacedRows(counts, put_whole(numbers, whole), new)
        return found

    def __call__(
        self, state: EmbeddingState, placed: Mapping[str, PlacedRows]
    ) -> tuple[EmbeddingState, OldRows]:
        """See `EmbeddingCollection.swap_rows`."""
        self._layout.check(state)
        tables, slots = dict(state.tables), dict(state.slots)
        found = {}
        for slab in self._layout.slabs:
            if slab.name not in placed:
                continue
            counts, rows, new = placed[slab.name]
            leaves = {"table": tables[slab.name], **slots.get(slab.name, {})}
            program = self._program(slab, with_slots=len(new) > 1)
            swapped, old = program({key: leaves[key] for key in new}, rows, new)
            for array in old.values():
                array.copy_to_host_async()
            found[slab.name] = counts, old
            tables[slab.name] = swapped.pop("table")
            if swapped:
                slots[slab.name] = slots[slab.name] | swapped
        return EmbeddingState(tables, slots, state.layout), OldRows(self._layout, found)

    def _program(self, slab: Slab, with_slots: bool) -> Any:
        """The program of a slab's table, alone or with the slots that have one number per row."""
        if (slab.name, with_slots) not in self._programs:
            specs = state_specs(self._axes, self._layout)
            leaves = {"table": specs.tables[slab.name]}
            split = {"table": slab_spec(slab, self._axes)}
            if with_slots:
                own, own_split = specs.slots[slab.name], leaf_specs(slab, self._axes)
                by_row = [key for key, ndim in slot_ndims(slab).items() if ndim]
                leaves |= {key: own[key] for key in by_row}
                split |= {key: own_split[key] for key in by_row}
            in_place = {key: x.sharding for key, x in leaves.items()}
            by_columns = PartitionSpec(None, *shard_axes(slab, self._axes))
            old = {
                key: by_columns if slab.split == "columns" and x.ndim == 2 else PartitionSpec()
                for key, x in leaves.items()
            }
            swap = jax.shard_map(
                lambda leaves, rows, new: self._swap(slab, leaves, rows, new),
                mesh=self._axes.mesh,
                in_specs=(split, PartitionSpec(), PartitionSpec()),
                out_specs=(split, old),
                check_vma=False,  # it can't know that copies are given the same values
            )
            shardings = {key: self._axes.sharding(spec) for key, spec in old.items()}
            self._programs[slab.name, with_slots] = jax.jit(
                swap, donate_argnums=0, out_shardings=(in_place, shardings)
            )
        return self._programs[slab.name, with_slots]

    def _swap(
        self,
        slab: Slab,
        leaves: Mapping[str, Shaped[Array, "R *d"]],
        rows: Int32[Array, "2 K"],
        new: Mapping[str, Shaped[Array, "K *dim"]],
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        shard = shard_index(slab, self._axes)
        local = local_rows(slab, [*slab.tables], rows[0], rows[1], shard)
        old = {}
        for key, array in leaves.items():
            found = packed_rows.take(array, local, slab.width)
            if slab.split in ("rows", "devices"):
                found = _from_owner(found, shard_axes(slab, self._axes))
            old[key] = found
        # Gathered first: the arrays may then be written in place.
        leaves, old = jax.lax.optimization_barrier((dict(leaves), old))
        swapped = {key: set_rows(slab, x, local, new[key], shard) for key, x in leaves.items()}
        return swapped, old


def _from_owner(found: Shaped[Array, "K *d"], over: tuple[str, ...]) -> Shaped[Array, "K *d"]:
    """Rows that one shard has, and zeros on the others, on all of them; bit for bit."""
    bits = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[found.dtype.itemsize]
    own = jax.lax.bitcast_convert_type(found, bits)
    return jax.lax.bitcast_convert_type(jax.lax.psum(own, over), found.dtype)
