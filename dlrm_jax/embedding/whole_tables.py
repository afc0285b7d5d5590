"""The whole tables of a collection: made, read, and reset in parts, outside the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from dlrm_jax.backend import Backend
from dlrm_jax.embedding import kernel_dispatch, reshard, row_reads, table_io
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.mesh_axes import MeshAxes
from dlrm_jax.embedding.row_reset import RowReset
from dlrm_jax.embedding.row_swaps import OldRows, PlacedRows, RowSwaps, Values
from dlrm_jax.embedding.row_writes import RowWrites
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.embedding.table import Table


class WholeTables:
    """The methods of `EmbeddingCollection` that make and read whole tables.

    Args:
        axes: axes of the mesh.
        layout: layout of the tables.
        backend: record of the devices.
        native: whether native kernels may be used.
        tables: all tables.
    """

    def __init__(
        self,
        axes: MeshAxes,
        layout: Layout,
        backend: Backend,
        native: bool,
        tables: Sequence[Table],
    ):
        self.axes = axes
        self.backend = backend
        self.layout = layout
        self.native = native
        self.tables = {table.name: table for table in tables}

    @property
    def kernels_in_use(self) -> dict[str, str]:
        """The implementation of the ``"lookups"`` and of the ``"updates"`` of rows.

        ``"native"``, ``"triton"``, ``"mosaic"``, ``"jax"``, ``"none"`` if there are none, or a list
        of the tables of each. If some lookups of an array are native, all tables in it are listed
        as native.
        """
        return kernel_dispatch.kernels_in_use(self.layout, self.native, self.backend)

    @cached_property
    def _unpackers(self) -> dict[str, reshard.Unpacker]:
        auto = self.axes.auto
        return {slab.name: reshard.unpacker(auto, slab) for slab in self.layout.slabs}

    @cached_property
    def _row_reset(self) -> RowReset:
        dynamic = [table for table in self.tables.values() if table.ids]
        return RowReset(self.axes, self.layout, dynamic)

    @cached_property
    def _row_writes(self) -> RowWrites:
        return RowWrites(self.axes, self.layout)

    @cached_property
    def _row_swaps(self) -> RowSwaps:
        return RowSwaps(self.axes, self.layout)

    def init(self, seed: int) -> EmbeddingState:
        """Initial tables and optimizer state, which depend on the seed, not on mesh or plan."""
        return self.from_arrays(lambda table: {}, seed)

    def state_specs(self) -> EmbeddingState:
        """Shapes, dtypes and shardings of a state's arrays; no array is made."""
        return table_io.state_specs(self.axes, self.layout)

    def from_arrays(
        self, source: Callable[[Table], Mapping[str, Array | np.ndarray]], seed: int
    ) -> EmbeddingState:
        """Makes a state from whole tables, one slab at a time so that little is in memory twice.

        Processes do it together, so it is here that they compare the kernels that they would run.

        Args:
            source: function from a table to its ``"table"`` [rows, dim] and its slots ([rows],
                [rows, dim] or []) by name. Missing arrays get initial values.
            seed: seed of the initial values.

        Raises:
            UserError: an array has another shape or an unknown name, or a number of it doesn't fit
                into the table's dtype, or processes have different kernels.
        """
        initial = kernel_dispatch.initial_values_in_use(self.layout, self.native)
        used = self.kernels_in_use | {"initial values": initial}
        kernel_dispatch.check_processes(self.axes.mesh, used)
        return table_io.from_arrays(self.axes, self.layout, source, seed, self.native)

    def iter_arrays(self, state: EmbeddingState) -> Iterator[tuple[Table, str, Array]]:
        """Yields whole arrays, table by table: the ``"table"``, then the optimizer slots by name.

        Few of them exist at a time. The arrays of a table with a slab of its own may be those of
        the state: don't donate the state while they are in use.
        """
        return table_io.iter_arrays(self.axes, self.layout, self._unpackers, state)

    def to_arrays(self, state: EmbeddingState) -> Iterator[tuple[Table, dict[str, Array]]]:
        """Yields each table with all its arrays by name, see `iter_arrays`."""
        return table_io.to_arrays(self.iter_arrays(state), self.layout)

    def read_rows(self, state: EmbeddingState, rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Some rows of tables on the host, [n, dim] of each table's dtype, as copies.

        Processes do it together, with the same rows, and all get them.

        Args:
            state: tables; the optimizers' state isn't read.
            rows: numbers of rows by table, [n] integers.

        Raises:
            UserError: the state is that of other tables or another plan, or a row is no integer or
                out of range.
        """
        return row_reads.read_rows(self.layout, state, rows)

    def read_row_state(
        self, state: EmbeddingState, rows: Mapping[str, Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        """As `read_rows`, with the optimizer state of the rows, as `write_rows` takes both.

        Returns:
            By table, the ``"table"`` [n, dim] and its slots by name: [n], [n, dim], or [].
        """
        return row_reads.read_row_state(self.layout, state, rows)

    def write_rows(
        self,
        state: EmbeddingState,
        rows: Mapping[str, Any],
        values: Mapping[str, Mapping[str, np.ndarray]],
    ) -> EmbeddingState:
        """Gives rows of tables the values and the optimizer state that `read_row_state` has read.

        Processes do it together, with the same rows and values.

        Args:
            state: tables and their optimizer state; it is donated.
            rows: numbers of rows by table, [n] integers, each once.
            values: arrays of these rows by table and name, of the dtypes that were read.

        Raises:
            UserError: the state is that of other tables or another plan, a row is no integer or out
                of range, or an array has another shape.
        """
        return self._row_writes(state, rows, values)

    def place_rows(self, rows: Mapping[str, Any], values: Values) -> dict[str, PlacedRows]:
        """Places the values of rows on the devices, for `swap_rows`. Any thread may call it.

        Args:
            rows: numbers of rows by table, [n] integers, each once.
            values: the ``"table"`` [n, dim] and slots by row, by table, as `read_row_state` gives
                them; or all without slots.
        """
        return self._row_swaps.place(rows, values)

    def swap_rows(
        self, state: EmbeddingState, placed: Mapping[str, PlacedRows]
    ) -> tuple[EmbeddingState, OldRows]:
        """Gives rows new values in place, and returns those that they had.

        It waits for nothing: `OldRows.read` does. Programs are compiled for numbers of rows that
        are powers of two.

        Args:
            state: tables and their optimizer state; what has new values is donated.
            placed: result of `place_rows`.
        """
        return self._row_swaps(state, placed)

    def array_specs(self, table: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a table's whole arrays, as `from_arrays` takes them.

        Raises:
            UserError: no table has this name.
        """
        return table_io.array_specs(self.axes, self.layout.slab_of(table), self.tables[table])

    def reset_rows(
        self,
        state: EmbeddingState,
        rows: Mapping[str, Any],
        seed: int,
        step: int,
    ) -> EmbeddingState:
        """Gives rows of tables with dynamic ids new values and the optimizer state of the start.

        The values depend on the seed, the step, the table's name and the row alone, not on mesh or
        plan. The program is compiled once. With no rows, nothing is run.

        Args:
            state: tables and their optimizer state; it is donated.
            rows: rows that have new ids, [F] integers by table name, each once.
            seed: seed of the initial values, -2^63 to 2^63 - 1.
            step: number of updates done so far, below 2^32.

        Raises:
            UserError: a table has no dynamic ids, or no such row; a number is out of range; or
                there are several processes, each of which would reset rows of its own.
        """
        return self._row_reset(state, rows, seed, step)
