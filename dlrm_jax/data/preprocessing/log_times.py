"""Times of logs: dates, times, or seconds since 1970, as numbers or as text."""

from __future__ import annotations

import datetime
from pathlib import Path

import polars as pl

from dlrm_jax.data.preprocessing.date_numbers import as_dates, len_known
from dlrm_jax.errors import UserError

_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # of Python's dates

SECONDS = f"seconds since 1970, from 0 to {_LAST_SECOND}"
"""Numbers that are times, for messages."""


def has_seconds(path: Path | str, times: pl.Series, first_row: int) -> bool | None:
    """Whether the times of a file are numbers: most of the first chunk that has any decide.

    Args:
        path: the file, for messages.
        times: times of a chunk.
        first_row: number of the chunk's first row, from 1.

    Returns:
        None if there is no time in the chunk.

    Raises:
        UserError: half of the different numbers, or more, are dates, see `as_dates`.
    """
    if times.dtype.is_temporal():
        return False
    numbers = times.cast(pl.Float64, strict=False)
    known = len(times) - times.null_count() - numbers.is_nan().sum()
    finite = numbers.filter(numbers.is_finite())
    if not known:
        return None
    if 2 * len(finite) <= known:
        return False
    # Of different ones, as many rows may have one time, or 0 for none.
    different = finite.unique(maintain_order=True)
    dates = as_dates(different)
    if 2 * len_known(dates) >= len(different):
        first = dates.is_not_null().arg_max() or 0
        row = (numbers == different[first]).arg_max() or 0
        second = datetime.datetime.fromtimestamp(different[first], datetime.UTC)
        raise UserError(
            f"{path}, row {first_row + row}, column {times.name}: expected a date, a time, or "
            f"{SECONDS}, got {times[row]!r}: the first times are dates written as numbers. Write "
            f"dates such as {dates[first]:%Y-%m-%d}; if they are seconds, write times such as "
            f"{second:%Y-%m-%d %H:%M:%S}"
        )
    return True


def as_times(column: pl.Series, seconds: bool) -> pl.Series:
    """Converts a column to microseconds since 1970 (UTC); null where a value isn't a time.

    Text is of numbers or of dates: a number among dates would be a time in 1970.
    """
    microseconds = pl.Datetime("us")
    if column.dtype.is_temporal():
        if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        times = column.cast(microseconds, strict=False)
        is_date = times.to_physical().is_between(
            _FIRST_SECOND * 1_000_000, _LAST_SECOND * 1_000_000 + 999_999
        )
        return times.to_frame("x").select(pl.when(is_date).then("x"))["x"].alias(column.name)
    if column.dtype == pl.String and not seconds:
        # Year first: 03/01/2024 is ambiguous.
        iso = column.str.extract(r"^(\d{4}-\d\d-\d\d.*)$")
        try:
            return as_times(iso.str.to_datetime(time_unit="us", strict=False), seconds)
        except pl.exceptions.ComputeError:  # no format fits any of them
            return pl.Series(column.name, [None] * len(column), microseconds)
    numbers = column.cast(pl.Float64, strict=False)
    in_range = numbers.is_between(0, _LAST_SECOND).fill_null(False)
    micros = (numbers * 1e6).cast(pl.Int64, strict=False).cast(microseconds)
    return micros.to_frame("x").select(pl.when(in_range).then("x"))["x"].alias(column.name)
