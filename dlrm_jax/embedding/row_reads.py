"""Some rows of tables, read from the slabs that they lie in to the host, on any mesh and plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer, Shaped

from dlrm_jax.embedding import row_split
from dlrm_jax.embedding.integer_arrays import row_numbers
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.plan import Piece
from dlrm_jax.embedding.reshard import slot_ndims
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.errors import UserError


def read_rows(
    layout: Layout, state: EmbeddingState, rows: Mapping[str, Any]
) -> dict[str, Shaped[np.ndarray, "n d"]]:
    """The numbers of some rows, of the dtype of each table, as copies.

    A host reads what its own devices have; on an accelerator, each gathers its rows first.

    Args:
        layout: layout of the state.
        state: tables.
        rows: numbers of rows by table.

    Raises:
        UserError: the state is that of other tables or another plan, a row is no integer or out of
            range, or another process has it.
    """
    layout.check(state)
    found = {}
    for name, numbers in _checked(layout, rows).items():
        slab = layout.slab_of(name)
        found[name] = _read(slab, name, state.tables[slab.name], numbers).view(slab.dtype)
    return found


def read_row_state(
    layout: Layout, state: EmbeddingState, rows: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """As `read_rows`, with the rows' optimizer state: all that `write_rows` needs.

    Returns:
        By table, the ``"table"`` [n, d] and its slots by name: [n], [n, d], or [] for one number.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    rows = _checked(layout, rows)
    for name, values in read_rows(layout, state, rows).items():
        slab = layout.slab_of(name)
        ndims = slot_ndims(slab)
        found[name] = {"table": values} | {
            key: _read(slab, name, array, rows[name]) if ndims[key] else np.array(array)
            for key, array in state.slots.get(slab.name, {}).items()
        }
    return found


def _checked(layout: Layout, rows: Mapping[str, Any]) -> dict[str, Integer[np.ndarray, " n"]]:
    return {
        name: row_numbers(name, given, layout.slab_of(name).tables[name].rows)
        for name, given in rows.items()
    }


def _read(slab: Slab, table: str, array: Any, numbers: np.ndarray) -> np.ndarray:
    """Reads rows of a table from an array of its slab: the table or an optimizer slot."""
    shape = (len(numbers), slab.dim)[: array.ndim]
    out = np.empty(shape, array.dtype)
    for piece, first in slab.on_shards:
        if piece.table == table:
            _read_piece(slab, piece, first, array, numbers, out)
    return out


def _read_piece(
    slab: Slab, piece: Piece, first: int, array: Any, numbers: np.ndarray, out: np.ndarray
) -> None:
    """Reads the rows of a piece that begins at row ``first`` of its shard's part of the slab."""
    own = np.flatnonzero(row_split.is_stored(numbers, piece.modulus, piece.residue))
    local = first + row_split.local_row(numbers[own], piece.modulus)
    row = 0 if slab.split == "columns" else (piece.shard or 0) * slab.rows
    columns = slice(piece.split * slab.width, (piece.split + 1) * slab.width)
    within = (columns,)[: array.ndim - 1]
    part = _part_at(array, row, *(each.start for each in within))
    if isinstance(part, jax.Array) and part.devices() <= set(jax.devices("cpu")):
        part = np.asarray(part)  # the same memory
    out[(own, *within)] = np.asarray(part[local])


def _part_at(array: Any, *first: int) -> Any:
    """The part of an array that a device of this process has, by its first row and column."""
    for shard in array.addressable_shards:
        if tuple(index.start or 0 for index in shard.index) == first:
            return shard.data
    raise UserError(
        "rows: expected a mesh whose devices are all of this process; other processes have some"
    )
