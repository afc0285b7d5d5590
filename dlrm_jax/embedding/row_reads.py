"""Some rows of tables, read from the slabs that they lie in to the host, on any mesh and plan."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer, Shaped

from dlrm_jax.embedding import packed_rows, row_split
from dlrm_jax.embedding.integer_arrays import row_numbers
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.plan import Piece
from dlrm_jax.embedding.reshard import slot_ndims
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.processes import gathered_bytes


def read_rows(
    layout: Layout, state: EmbeddingState, rows: Mapping[str, Any]
) -> dict[str, Shaped[np.ndarray, "n d"]]:
    """The numbers of some rows, of the dtype of each table, as copies.

    A host reads what its own devices have; on an accelerator, each gathers its rows first. Several
    processes call it together, with the same rows. What only some of them have, one sends to all.

    Args:
        layout: layout of the state.
        state: tables.
        rows: numbers of rows by table.

    Raises:
        UserError: the state is that of other tables or another plan, or a row is no integer or out
            of range.
    """
    reads = _Reads(layout, state, rows)
    found = {name: reads.read(name, "table") for name in rows}
    reads.complete()
    return found


def read_row_state(
    layout: Layout, state: EmbeddingState, rows: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """As `read_rows`, with the rows' optimizer state: all that `write_rows` needs.

    Returns:
        By table, the ``"table"`` [n, d] and its slots by name: [n], [n, d], or [] for one number.
    """
    reads = _Reads(layout, state, rows)
    found = {
        name: {key: reads.read(name, key) for key in ("table", *slot_ndims(layout.slab_of(name)))}
        for name in rows
    }
    reads.complete()
    return found


def _checked(layout: Layout, rows: Mapping[str, Any]) -> dict[str, Integer[np.ndarray, " n"]]:
    return {
        name: row_numbers(name, given, layout.slab_of(name).tables[name].rows)
        for name, given in rows.items()
    }


class _Reads:
    """Rows of a state that are read together: `read` them, and `complete` what it has given.

    Args:
        layout: layout of the state.
        state: tables and their optimizer state.
        rows: numbers of rows by table.
    """

    def __init__(self, layout: Layout, state: EmbeddingState, rows: Mapping[str, Any]):
        layout.check(state)
        self._layout, self._state, self._rows = layout, state, _checked(layout, rows)
        self._sent: list[np.ndarray] = []
        # What processes send, in their order: which one, and the place of the rows.
        self._awaited: list[tuple[int, np.ndarray, tuple[Any, ...]]] = []

    def read(self, table: str, key: str) -> np.ndarray:
        """The ``"table"`` or an optimizer slot of the rows of a table; see `complete`."""
        slab, numbers = self._layout.slab_of(table), self._rows[table]
        if key != "table":
            array: Any = self._state.slots[slab.name][key]
            if not array.ndim:
                return np.array(array)
        else:
            array = self._state.tables[slab.name]
        out = np.empty((len(numbers), slab.dim)[: array.ndim], array.dtype)
        holders = _holders(array)
        for piece, first in slab.on_shards:
            if piece.table == table:
                self._read_piece(slab, piece, first, array, holders, numbers, out)
        return out.view(slab.dtype) if key == "table" else out

    def _read_piece(
        self,
        slab: Slab,
        piece: Piece,
        first: int,
        array: Any,
        holders: Mapping[tuple[int, ...], Sequence[int]],
        numbers: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """Reads the rows of a piece, which begins at row ``first`` of its shard's part."""
        own = np.flatnonzero(row_split.is_stored(numbers, piece.modulus, piece.residue))
        before = 0 if slab.split == "columns" else piece.shard or 0
        columns = slice(piece.split * slab.width, (piece.split + 1) * slab.width)
        within = (columns,)[: array.ndim - 1]
        place = slab.stored_shape((before * slab.rows, columns.start)[: array.ndim])
        everywhere = len(holders[place]) == jax.process_count()
        if not everywhere:
            self._awaited.append((holders[place][0], out, (own, *within)))
        if everywhere or holders[place][0] == jax.process_index():
            local = first + row_split.local_row(numbers[own], piece.modulus)
            found = _rows_at(array, place, local, slab.width)
            if everywhere:
                out[(own, *within)] = found
            else:
                self._sent.append(np.ascontiguousarray(found).reshape(-1).view(np.uint8))

    def complete(self) -> None:
        """Fills in what other processes have read."""
        if not self._awaited:
            return
        parts = gathered_bytes(np.concatenate([np.zeros(0, np.uint8), *self._sent]))
        ends = [0] * len(parts)
        for process, out, where in self._awaited:
            shape = (len(where[0]), *(columns.stop - columns.start for columns in where[1:]))
            begin = ends[process]
            ends[process] += math.prod(shape) * out.itemsize
            content = parts[process][begin : ends[process]]
            out[where] = content.view(out.dtype).reshape(shape)


def _holders(array: Any) -> dict[tuple[int, ...], list[int]]:
    """The numbers of the processes that have each part of an array, by its first row and column."""
    found: dict[tuple[int, ...], list[int]] = {}
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        have = found.setdefault(tuple(x.start or 0 for x in index), [])
        if device.process_index not in have:
            bisect.insort(have, device.process_index)
    return found


def _rows_at(array: Any, first: tuple[int, ...], local: np.ndarray, width: int) -> np.ndarray:
    """Rows of the part of an array that a device of this process has, by its first row and column.

    They are numbered within it, and have so many numbers.
    """
    part = next(
        shard.data
        for shard in array.addressable_shards
        if tuple(index.start or 0 for index in shard.index) == first
    )
    if part.devices() <= set(jax.devices("cpu")):
        part = np.asarray(part)  # the same memory
    if part.ndim == 2 and part.shape[1] != width:
        if isinstance(part, np.ndarray):
            part = packed_rows.unpack(part, width)
        else:
            return np.asarray(_take(part, local, width))
    return np.asarray(part[local])


_take = jax.jit(packed_rows.take, static_argnums=2)
