"""The layout of tables on TPUs, and the bytes that XLA moves for a row.

The memory of a TPU has tiles of 8 x 128 numbers. XLA stores a table whose width is a multiple of
128 row by row, and any other one column by column: so it needs no padding but to 8 numbers a row,
and each number of a row lies in another line. Of the latter, those of wide rows are packed, see
`packed_rows`, into a table that is stored row by row. To read rows of others with few rows, a
program first copies the whole table to rows, padded to 128 numbers, in every step.

What is said here was read of programs that libtpu 0.0.41 compiled for a TPU v5e: gathers from and
updates of tables of 2^20 rows, and the bytes that ``cost_analysis`` counts for them.
"""

from __future__ import annotations

from dlrm_jax.backend import TPU
from dlrm_jax.embedding.packed_rows import LANES, columns, fills_no_lines, per_line

_SUBLANES = 8
_TILE = LANES * _SUBLANES
# Tiles that are read for one row of a table that is stored by columns, of any width.
_TILES_BY_COLUMNS = 16

# Rows for each id of a narrow table that is copied, too: tables with 3 and 5 were, with 79 not.
_FEW_ROWS = 16


def stored_width(width: int) -> int:
    """The numbers of a row of so many with its padding."""
    if fills_no_lines(width, TPU.packed_from):
        return columns(width) // per_line(width)
    if width <= _SUBLANES:
        return 1 << (width - 1).bit_length()
    return -(-width // _SUBLANES) * _SUBLANES


def row_access(width: int, itemsize: int) -> int:
    """The bytes that are read for one row at random.

    Args:
        width: numbers of a row.
        itemsize: bytes of a number.
    """
    by_columns = width > 1 and width % LANES and not fills_no_lines(width, TPU.packed_from)
    tiles = _TILES_BY_COLUMNS if by_columns else -(-width // LANES)
    return tiles * _TILE * itemsize


def copied_width(width: int, rows: int, ids: int) -> int:
    """The numbers that a step writes for every row of a table, touched or not; 0 if it needn't.

    Args:
        width: numbers of a row.
        rows: number of rows.
        ids: number of ids that read them.
    """
    by_columns = width > 1 and width % LANES and not fills_no_lines(width, TPU.packed_from)
    return -(-width // LANES) * LANES if by_columns and rows < _FEW_ROWS * ids else 0
