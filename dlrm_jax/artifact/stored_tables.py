"""Tables as files of stored rows, mapped into memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dlrm_jax.artifact.mapped_file import map_file
from dlrm_jax.artifact.row_formats import RowFormat, row_bytes
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTable:
    """A table in a row format.

    Attributes:
        name: name, for messages.
        rows: rows as `row_formats.encode` gives them, [R, `row_bytes`] uint8, contiguous; usually
            the memory map of a file.
        row_format: format of the rows.
        dim: numbers of a row.
    """

    name: str
    rows: UInt8[np.ndarray, "R b"]
    row_format: RowFormat
    dim: int

    def __post_init__(self) -> None:
        width = row_bytes(self.row_format, self.dim)
        if self.rows.dtype != np.uint8 or self.rows.shape[1:] != (width,):
            raise UserError(
                f"table {self.name}: expected uint8 rows of {width} bytes for {self.dim} numbers "
                f"as {self.row_format}, got {self.rows.dtype} of shape {self.rows.shape}"
            )
        if not self.rows.flags.c_contiguous or not len(self.rows):
            raise UserError(f"table {self.name}: expected one or more rows, side by side in memory")


def map_table(
    path: str | Path,
    name: str,
    rows: int,
    row_format: RowFormat,
    dim: int,
    private: bool = False,
) -> StoredTable:
    """A table of which a file has the rows, one after the other.

    Rows are read when they are needed first, see `map_file`.

    Args:
        path: file, or its name.
        name: name of the table.
        rows: number of rows.
        row_format: format of the rows.
        dim: numbers of a row.
        private: whether rows may be written in this process, see `map_file`.

    Raises:
        UserError: the file can't be read, or has another size.
    """
    width = row_bytes(row_format, dim)
    try:
        mapped = map_file(path, private)
    except OSError as error:
        raise UserError(f"table {name}: cannot read {path}: {error}") from error
    if mapped.size != rows * width or not rows:
        raise UserError(
            f"table {name}: expected {rows * width} bytes in {path}, {rows} rows of {dim} numbers "
            f"as {row_format}, got {mapped.size}; give a whole copy"
        )
    return StoredTable(name, mapped.reshape(rows, width), row_format, dim)
