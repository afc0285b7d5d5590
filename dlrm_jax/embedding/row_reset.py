"""Rows that begin afresh: initial values and optimizer state for the next id of a row.

A table with dynamic ids gives the rows of ids that it forgets to new ones. Resetting such rows is
a program of its own, which runs where there is something to reset: lookups and updates are as
without. It writes a fixed number of rows of all these tables at a time, in place.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Int32, Key, UInt32

from dlrm_jax.embedding.integer_arrays import row_numbers
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.reshard import slab_spec, slot_ndims
from dlrm_jax.embedding.row_places import NO_ROW, leaf_specs, local_rows, set_rows, shard_index
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.embedding.storage_dtype import encode
from dlrm_jax.embedding.table import Table, check_whole
from dlrm_jax.embedding.table_io import state_specs
from dlrm_jax.errors import UserError

CHUNK = 1024
"""Rows that one call of the program resets; a call with fewer takes as long."""

_GENERATOR = "threefry2x32"  # the default one may differ from backend to backend


class RowReset:
    """The program that resets rows, compiled once for all numbers of rows.

    Args:
        axes: axes of the mesh.
        layout: layout of all tables.
        tables: tables whose rows it may reset.
    """

    def __init__(self, axes: MeshAxes, layout: Layout, tables: Sequence[Table]):
        self._axes = axes
        self._layout = layout
        self._tables = {table.name: table for table in tables}
        self._slabs = [
            slab for slab in layout.slabs if not self._tables.keys().isdisjoint(slab.tables)
        ]
        shardings = jax.tree.map(lambda x: x.sharding, self._part(state_specs(axes, layout)))
        self._run = jax.jit(self._reset, donate_argnums=0, out_shardings=shardings)

    def __call__(
        self, state: EmbeddingState, rows: Mapping[str, Any], seed: int, step: int
    ) -> EmbeddingState:
        """See `EmbeddingCollection.reset_rows`."""
        self._layout.check(state)
        check_whole("seed", seed, -(2**63), 2**63 - 1)
        check_whole("step, the number of updates", step, 0, 2**32 - 1)
        key = _key_data(seed)
        for chunk in self._chunks(rows):
            new = self._run(self._part(state), chunk, key, np.uint32(step))
            tables, slots = state.tables | new.tables, state.slots | new.slots
            state = EmbeddingState(tables, slots, state.layout)
        return state

    def lower(self) -> jax.stages.Lowered:
        """The program, lowered without making an array."""
        part = self._part(state_specs(self._axes, self._layout))
        chunk = jax.ShapeDtypeStruct((2, CHUNK), np.int32)
        return self._run.lower(part, chunk, _key_data(0), np.uint32(0))

    def _part(self, state: EmbeddingState) -> EmbeddingState:
        """The slabs of the tables whose rows are reset."""
        tables = {slab.name: state.tables[slab.name] for slab in self._slabs}
        slots = {name: state.slots[name] for name in tables if name in state.slots}
        return EmbeddingState(tables, slots, state.layout)

    def _chunks(self, rows: Mapping[str, Any]) -> Iterator[Int32[np.ndarray, "2 K"]]:
        """Numbers of tables, and rows of these tables, padded with `NO_ROW`."""
        names = list(self._tables)
        pairs = [np.zeros((2, 0), np.int32)]
        for name, given in rows.items():
            if name not in self._tables:
                raise UserError(
                    f"rows: expected those of tables with dynamic ids "
                    f"({', '.join(names) or 'there are none'}), got table {name!r}"
                )
            own = row_numbers(name, given, self._tables[name].rows)
            numbers = np.full(len(own), names.index(name))
            pairs.append(np.stack([numbers, own]).astype(np.int32))
        whole = np.concatenate(pairs, axis=1)
        for start in range(0, whole.shape[1], CHUNK):
            chunk = whole[:, start : start + CHUNK]
            padding = CHUNK - chunk.shape[1]
            yield np.pad(chunk, ((0, 0), (0, padding)), constant_values=((0, 0), (0, NO_ROW)))

    def _reset(
        self,
        part: EmbeddingState,
        chunk: Int32[Array, "2 K"],
        key: UInt32[Array, "2"],
        step: UInt32[Array, ""],
    ) -> EmbeddingState:
        specs = EmbeddingState(
            {slab.name: slab_spec(slab, self._axes) for slab in self._slabs},
            {slab.name: leaf_specs(slab, self._axes) for slab in self._slabs if slab.optimizer},
            part.layout,
        )
        return jax.shard_map(
            self._reset_on_device,
            mesh=self._axes.mesh,
            in_specs=(specs, PartitionSpec(), PartitionSpec(), PartitionSpec()),
            out_specs=specs,
            check_vma=False,  # it can't know that copies are given the same values
        )(part, chunk, key, step)

    def _reset_on_device(
        self,
        part: EmbeddingState,
        chunk: Int32[Array, "2 K"],
        key: UInt32[Array, "2"],
        step: UInt32[Array, ""],
    ) -> EmbeddingState:
        numbers, rows = chunk
        names = np.array([zlib.crc32(name.encode()) for name in self._tables], np.uint32)
        of_step = jax.random.fold_in(jax.random.wrap_key_data(key, impl=_GENERATOR), step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(of_step, jnp.asarray(names)[numbers])
        values = self._draw(jax.vmap(jax.random.fold_in)(keys, rows), numbers)
        tables, slots = dict(part.tables), dict(part.slots)
        for slab in self._slabs:
            new = self._values_of(slab, values, numbers)
            shard = shard_index(slab, self._axes)
            local = local_rows(slab, [*self._tables], numbers, rows, shard)
            tables[slab.name] = set_rows(slab, tables[slab.name], local, encode(new), shard)
            if slab.optimizer:
                # Of whole rows, of which it may take a mean.
                initial = slab.optimizer.initial_slots(new.astype(slab.vector_dtype))
                ndims = slot_ndims(slab)
                slots[slab.name] = {
                    name: set_rows(slab, slot, local, initial[name], shard) if ndims[name] else slot
                    for name, slot in slots[slab.name].items()
                }
        return EmbeddingState(tables, slots, part.layout)

    def _draw(self, keys: Key[Array, " K"], numbers: Int[Array, " K"]) -> dict[str, Array]:
        """Initial values of the rows, [K, d], by table: as if all were rows of that table.

        Tables that differ only in the number of rows share them.
        """
        bounds = np.array([table.initial_bound for table in self._tables.values()])
        by_kind: dict[tuple[int, int, str], Array] = {}
        found = {}
        for table in self._tables.values():
            kind = id(table.init), table.dim, str(jnp.dtype(table.dtype))
            if kind not in by_kind:
                dtype = jnp.promote_types(table.dtype, jnp.float32)

                def draw(
                    key: Key[Array, ""], bound: Float[Array, ""], table: Table = table
                ) -> Array:
                    return table.initial_rows(key, 1, bound)[0]

                by_kind[kind] = jax.vmap(draw)(keys, jnp.asarray(bounds, dtype)[numbers])
            found[table.name] = by_kind[kind]
        return found

    def _values_of(
        self, slab: Slab, values: Mapping[str, Array], numbers: Int[Array, " K"]
    ) -> Float[Array, "K d"]:
        """The values that the rows of a slab's tables get; others are never written."""
        own = [(i, name) for i, name in enumerate(self._tables) if name in slab.tables]
        found = values[own[0][1]]
        for number, name in own[1:]:
            if values[name] is not found:
                found = jnp.where((numbers == number)[:, None], values[name], found)
        return found


@functools.lru_cache(maxsize=8)
def _key_data(seed: int) -> UInt32[np.ndarray, "2"]:
    return np.asarray(jax.random.key_data(jax.random.key(seed, impl=_GENERATOR)))
