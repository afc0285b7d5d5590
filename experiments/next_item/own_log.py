"""Logs of one's own: Parquet or CSV files with a row for each interaction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from dlrm_jax.data.formats import parquet
from dlrm_jax.data.formats.csv_text import Records
from dlrm_jax.data.formats.lines import whole_lines
from dlrm_jax.data.preprocessing.log_times import as_times, has_seconds
from dlrm_jax.errors import UserError, shown

_CHUNK_BYTES = 1 << 24
_FRAME_ROWS = 1 << 18
_MISSING = ("",)  # NA may be a country


def read_log(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """The columns of a log that are there.

    A CSV file has no types. Its users and items are integers if all of a column are, else text; its
    times are numbers of seconds if all are, else dates with the year first.

    Args:
        path: the file, CSV if its name ends so.
        columns: names of the columns of users, items and times.

    Raises:
        UserError: it can't be read, a line is malformed, there are no rows, or times are dates that
            are written as numbers.
    """
    if path.suffix == ".csv":
        found = _of_csv(path, columns)
    else:
        with parquet.reading(f"the Parquet file {path}"):
            found = pl.read_parquet(path)
    if found.is_empty():
        raise UserError(f"log {path}: expected a row for each interaction, got none")
    if columns[-1] in found.columns and found[columns[-1]].dtype.is_numeric():
        has_seconds(path, found[columns[-1]], first_row=1)  # or they are dates, which is an error
    return found


def _of_csv(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    try:
        with path.open("rb") as file:
            records = Records(whole_lines(file.read, path, _CHUNK_BYTES), path, "stop")
            names = [name for name in records.columns if name in columns]
            if len(names) < len(columns):  # who reads the log names what is missing
                names = records.columns
            found = pl.concat(list(records.frames(names, _FRAME_ROWS, _MISSING)))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    *ids, time = columns
    known = [_integers(found[name]) if name in ids else found[name] for name in names]
    if time in names:
        known[names.index(time)] = _times(path, found[time])
    return pl.DataFrame(known)


def _integers(column: pl.Series) -> pl.Series:
    numbers = column.cast(pl.Int64, strict=False)
    # 007 isn't 7.
    same = numbers.cast(pl.String).eq_missing(column).all()
    return numbers if same else column


def _times(path: Path, column: pl.Series) -> pl.Series:
    ways = [
        column.cast(pl.Int64, strict=False),
        column.cast(pl.Float64, strict=False),
        as_times(column.str.replace(r"^(\d{4})/(\d\d)/(\d\d)", "$1-$2-$3"), seconds=False),
    ]
    best = min(ways, key=pl.Series.null_count)
    if wrong := (best.is_null() & column.is_not_null()).arg_true().to_list():
        raise UserError(
            f"{path}, column {column.name}: expected seconds as numbers, or dates such as "
            f"2026-01-31 or 2026-01-31 12:00:00, all in one way, got {shown(column[wrong[0]])} in "
            f"row {wrong[0] + 1:,} below the header"
        )
    return best
