"""Some rows of tables, read from the slabs that they lie in to the host, on any mesh and plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, Shaped

from dlrm_jax.embedding import row_split
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.plan import Piece
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import EmbeddingState
from dlrm_jax.errors import UserError


def read_rows(
    layout: Layout, state: EmbeddingState, rows: Mapping[str, Int[np.ndarray, " n"]]
) -> dict[str, Shaped[np.ndarray, "n d"]]:
    """The numbers of some rows, of the dtype of each table, as copies.

    A host reads what its own devices have; on an accelerator, each gathers its rows first.

    Args:
        layout: layout of the state.
        state: tables.
        rows: numbers of rows by table.

    Raises:
        UserError: the state is that of other tables or another plan, a row is out of range, or
            another process has it.
    """
    layout.check(state)
    found = {}
    for name, numbers in rows.items():
        slab = layout.slab_of(name)
        table = slab.tables[name]
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < table.rows:
            raise UserError(
                f"rows: expected numbers from 0 to {table.rows - 1} of table {name}, got "
                f"{numbers.min()} to {numbers.max()}"
            )
        array = state.tables[slab.name]
        out = np.empty((len(numbers), slab.dim), array.dtype)
        for piece, first in slab.on_shards:
            if piece.table == name:
                _read(slab, piece, first, array, numbers, out)
        found[name] = out.view(slab.dtype)
    return found


def _read(
    slab: Slab, piece: Piece, first: int, array: Any, numbers: np.ndarray, out: np.ndarray
) -> None:
    """Reads the rows of a piece that begins at row ``first`` of its shard's part of the slab."""
    own = np.flatnonzero(row_split.is_stored(numbers, piece.modulus, piece.residue))
    local = first + row_split.local_row(numbers[own], piece.modulus)
    columns = slice(piece.split * slab.width, (piece.split + 1) * slab.width)
    row = 0 if slab.split == "columns" else (piece.shard or 0) * slab.rows
    part = _part_at(array, row, columns.start)
    if isinstance(part, jax.Array) and part.devices() <= set(jax.devices("cpu")):
        part = np.asarray(part)  # the same memory
    out[own, columns] = np.asarray(part[local])


def _part_at(array: Any, row: int, column: int) -> Any:
    """The part of an array that a device of this process has, by its first row and column."""
    for shard in array.addressable_shards:
        rows, columns = shard.index
        if (rows.start or 0, columns.start or 0) == (row, column):
            return shard.data
    raise UserError(
        "rows: expected a mesh whose devices are all of this process; other processes have some"
    )
