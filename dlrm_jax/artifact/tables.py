"""The tables of an artifact: files of rows that are mapped into memory, not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlrm_jax.artifact.notes import LookupNote, TableNote
from dlrm_jax.artifact.row_formats import RowFormat, encode
from dlrm_jax.artifact.row_pooling import RowPooling, StoredLookup
from dlrm_jax.artifact.stored_tables import StoredTable, map_table
from dlrm_jax.errors import DamagedArtifactError, UserError

_CHUNK_BYTES = 1 << 24


def map_rows(directory: Path, note: TableNote, private: bool = False) -> StoredTable:
    """Maps the table of an artifact; its file is there, see `files.check_present`.

    Raises:
        UserError: the system can't map it.
        DamagedArtifactError: the file has another size than the table.
    """
    try:
        path = directory / note.file
        return map_table(path, note.name, note.rows, note.row_format, note.dim, private)
    except UserError as error:
        if isinstance(error.__cause__, OSError):  # too many open files, say
            raise
        raise DamagedArtifactError(str(directory), note.file, str(error)) from error


def map_lookups(
    directory: Path,
    tables: Sequence[TableNote],
    lookups: Sequence[LookupNote],
    private: bool = False,
) -> RowPooling:
    """The lookups of an artifact in its mapped tables, whose rows may be written if private.

    Raises:
        DamagedArtifactError: the file of a table has another size than the table.
    """
    mapped = {note.name: map_rows(directory, note, private) for note in tables}
    return RowPooling(
        [
            StoredLookup(note.name, mapped[note.table], note.columns, note.pooling, **note.id_map)
            for note in lookups
        ]
    )


def write_rows(path: Path, table: np.ndarray, row_format: RowFormat) -> None:
    """Writes a table in a row format, chunk by chunk.

    Args:
        path: file to make.
        table: numbers of the rows, of any floating dtype, [rows, dim].
        row_format: row format.

    Raises:
        UserError: the format can't hold a row.
    """
    step = max(1, _CHUNK_BYTES // (4 * table.shape[1]))
    with path.open("xb") as file:
        for first in range(0, len(table), step):
            chunk = np.asarray(table[first : first + step]).astype(np.float32)
            try:
                stored = encode(chunk, row_format, first_row=first)
            except UserError as error:
                raise UserError(f"table {path.stem}: {error}") from error
            file.write(stored.data)
