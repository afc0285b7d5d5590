"""Dates that are written as numbers, such as 20260301, which could pass for seconds."""

from __future__ import annotations

import datetime

import polars as pl

_FIRST, _LAST = datetime.date(1990, 1, 1), datetime.date(2100, 12, 31)


def as_dates(numbers: pl.Series) -> pl.Series:
    """The numbers as dates of 1990 to 2100, in the form that most of them have.

    The forms are 20260301, 2026030123 with an hour, 1032026 and 3012026 of 01032026 and 03012026,
    and 260301. Of a hundred seconds in a row, 31 at most are like dates in most of them.

    Args:
        numbers: finite numbers.

    Returns:
        Their dates; null for a number that isn't one in that form.
    """
    whole = numbers.cast(pl.Int64, strict=False)
    text = whole.to_frame("x").select(pl.when(pl.col("x") == numbers).then(pl.col("x")))["x"]
    text = text.cast(pl.String)
    digits = text.str.len_chars()
    hours = text.str.slice(8).cast(pl.Int64, strict=False)
    forms = [
        (text, digits == 8, "%Y%m%d"),
        (text.str.slice(0, 8), (digits == 10) & (hours < 24), "%Y%m%d"),
        (text.str.zfill(8), digits.is_between(7, 8), "%d%m%Y"),
        (text.str.zfill(8), digits.is_between(7, 8), "%m%d%Y"),
        ("20" + text, digits == 6, "%Y%m%d"),
    ]
    found = [_parsed(written, fits, form) for written, fits, form in forms]
    return max(found, key=len_known)


def len_known(values: pl.Series) -> int:
    """The number of values that aren't null."""
    return len(values) - values.null_count()


def _parsed(written: pl.Series, fits: pl.Series, form: str) -> pl.Series:
    dates = written.str.to_date(form, strict=False)
    good = fits & dates.is_between(_FIRST, _LAST)
    return dates.to_frame("x").select(pl.when(good).then(pl.col("x")))["x"]
