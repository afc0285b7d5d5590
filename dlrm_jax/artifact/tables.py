"""The tables of an artifact: files of rows that are mapped into memory, not read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, UInt8

from dlrm_jax.artifact.manifest import RowFormat, TableNote
from dlrm_jax.artifact.row_formats import decode, encode, row_bytes
from dlrm_jax.errors import DamagedArtifactError

_CHUNK_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class StoredTable:
    """A table whose rows are stored in a row format.

    Attributes:
        stored: bytes of the rows, mapped from a file.
        row_format: row format.
        dim: numbers of a row.
    """

    stored: UInt8[np.ndarray, "rows bytes"]
    row_format: RowFormat
    dim: int

    @classmethod
    def map(cls, directory: Path, note: TableNote) -> StoredTable:
        """Maps the table of an artifact; its file is there, see `files.check_present`.

        Raises:
            DamagedArtifactError: the file has another size than the table.
        """
        path, width = directory / note.file, row_bytes(note.row_format, note.dim)
        size = path.stat().st_size
        if size != note.rows * width:
            raise DamagedArtifactError(
                str(directory),
                note.file,
                f"expected {note.rows:,} rows of {width} bytes, it has {size:,} bytes",
            )
        # A plain view: gathering from np.memmap objects costs Python calls for every result.
        mapped = np.asarray(np.memmap(path, np.uint8, "r", shape=(note.rows, width)))
        return cls(mapped, note.row_format, note.dim)

    def __len__(self) -> int:
        return len(self.stored)

    def rows(self, numbers: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n dim"]:
        """The numbers of some rows, which the table has."""
        return decode(self.stored.take(numbers, axis=0), self.row_format, self.dim)


def write_rows(path: Path, table: np.ndarray, row_format: RowFormat) -> None:
    """Writes a table in a row format, chunk by chunk.

    Args:
        path: file to make.
        table: numbers of the rows, of any floating dtype, [rows, dim].
        row_format: row format.
    """
    step = max(1, _CHUNK_BYTES // (4 * table.shape[1]))
    with path.open("xb") as file:
        for first in range(0, len(table), step):
            chunk = np.asarray(table[first : first + step]).astype(np.float32)
            file.write(encode(chunk, row_format).data)
