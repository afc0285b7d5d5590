"""The layout that XLA gives tables on TPUs, and the bytes that it moves for a row.

The memory of a TPU has tiles of 8 x 128 numbers. XLA stores a table whose width is a multiple of
128 row by row, and any other one column by column: so it needs no padding but to 8 numbers a row,
and each number of a row lies in another line. To read rows wider than 48 of such a table, a program
first copies the whole table to rows, padded to 128 numbers, in every step.

What is said here was read of programs that libtpu 0.0.41 compiled for a TPU v5e: gathers from and
updates of tables of 2^20 rows, and the bytes that ``cost_analysis`` counts for them.
"""

from __future__ import annotations

LANES, _SUBLANES = 128, 8
_TILE = LANES * _SUBLANES
# Tiles that are read for one row of a table that is stored by columns, of any width.
_TILES_BY_COLUMNS = 16
NOT_COPIED = 48
"""The most numbers of a row that is read by columns; multiples of `LANES` aren't copied either."""


def stored_width(width: int) -> int:
    """The numbers of a row of so many with its padding."""
    if width <= _SUBLANES:
        return 1 << (width - 1).bit_length()
    return -(-width // _SUBLANES) * _SUBLANES


def row_access(width: int, itemsize: int) -> int:
    """The bytes that are read for one row at random.

    Args:
        width: numbers of a row.
        itemsize: bytes of a number.
    """
    by_columns = width > 1 and width % LANES
    tiles = _TILES_BY_COLUMNS if by_columns else -(-width // LANES)
    return tiles * _TILE * itemsize


def copied_width(width: int) -> int:
    """The numbers that a step writes for every row of a table, touched or not; 0 if it needn't."""
    is_copied = width > NOT_COPIED and width % LANES
    return -(-width // LANES) * LANES if is_copied else 0
