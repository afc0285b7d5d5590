"""Tables as files of stored rows, mapped into memory."""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

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
    path: str | Path, name: str, rows: int, row_format: RowFormat, dim: int
) -> StoredTable:
    """A table of which a file has the rows, one after the other.

    Rows are read when they are needed first. Linux is asked for huge pages: with small ones, random
    reads of a large table also wait for the translation of addresses. ext4 on Linux 6.18 had them
    for files that were read this way, or written by some MiB at a time.

    Args:
        path: file, or its name.
        name: name of the table.
        rows: number of rows.
        row_format: format of the rows.
        dim: numbers of a row.

    Raises:
        UserError: the file can't be read, or has another size.
    """
    shape = (rows, row_bytes(row_format, dim))
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise UserError(f"table {name}: cannot read {path}: {error}") from error
    if size != (expected := shape[0] * shape[1]):
        raise UserError(
            f"table {name}: expected {expected} bytes in {path}, {rows} rows of {dim} numbers as "
            f"{row_format}, got {size}; give a whole copy"
        )
    try:
        mapped = np.memmap(path, np.uint8, "r", shape=shape)
    except (OSError, ValueError) as error:
        raise UserError(f"table {name}: cannot map {path}: {error}") from error
    _ask_for_huge_pages(mapped)
    return StoredTable(name, mapped, row_format, dim)


def _ask_for_huge_pages(mapped: np.memmap) -> None:
    memory = mapped.base
    if hasattr(mmap, "MADV_HUGEPAGE") and isinstance(memory, mmap.mmap):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            return
