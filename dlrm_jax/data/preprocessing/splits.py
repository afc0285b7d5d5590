"""Cuts rows into days, and days into training, validation and test."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from dlrm_jax.data.preprocessing.staging import Staged
from dlrm_jax.errors import UserError

DAYS = 7
"""Number of days that a single file is cut into, as many as Criteo Kaggle's file holds."""

Splits = dict[str, list[list[int]]]
"""Rows of each split, by name: a list of [day, first row in it, row after the last]."""


@dataclasses.dataclass(frozen=True)
class Day:
    """Consecutive rows of one file that make one set of arrays.

    Attributes:
        file: index of the file.
        start: its first row.
        stop: the row after its last.
        date: date of all its rows; None if unknown.
    """

    file: int
    start: int
    stop: int
    date: datetime.date | None = None

    def __len__(self) -> int:
        return self.stop - self.start


def days_by_file(rows: Sequence[int]) -> list[Day]:
    """One day per file."""
    return [Day(file, 0, count) for file, count in enumerate(rows)]


def even_days(rows: int) -> list[Day]:
    """Cuts a single file into seven days of equal length.

    If the number of rows isn't a multiple of seven, the first days are a row longer, as in the DLRM
    paper's implementation.
    """
    length, longer = divmod(rows, DAYS)
    starts = [day * length + min(day, longer) for day in range(DAYS + 1)]
    return [Day(0, start, stop) for start, stop in itertools.pairwise(starts)]


def days_by_date(paths: Sequence[Path], files: Sequence[Staged]) -> list[Day]:
    """Cuts files into one day per date (UTC); a date may continue in the next file.

    Raises:
        UserError: times go back.
    """
    days, last = [], None
    for number, (path, file) in enumerate(zip(paths, files, strict=True)):
        start, row, date = 0, 0, None
        for chunk in file.chunks():
            times = pl.scan_ipc(chunk, glob=False).select("time").collect()["time"]
            before = times.shift(1, fill_value=last)
            if (times < before).any():
                bad = (times < before).arg_max() or 0
                raise UserError(
                    f"{path}, row {row + bad + 1} of those kept: its time {times[bad]} is before "
                    f"that of the row before, {before[bad]}; sort logs by time, and name files in "
                    f"the order of time"
                )
            for today, length in (
                times.dt.date().rle().struct.unnest().select("value", "len").rows()
            ):
                if date is not None and today != date:
                    days.append(Day(number, start, row, date))
                    start = row
                date, row = today, row + length
            last = times[-1] if len(times) else last
        days.append(Day(number, start, row, date))
    return days


def by_day(days: Sequence[Day]) -> Splits:
    """Splits days: the last one for test and validation, all others for training.

    Test is the first half, with the odd row, as in the DLRM paper's implementation. A date that
    several files share is one day.

    Raises:
        UserError: a split would be empty.
    """
    first = len(days) - 1
    while first > 0 and days[first].date and days[first - 1].date == days[first].date:
        first -= 1
    rows = sum(map(len, days[first:]))
    _check(days[:first])
    if first < 1 and days[0].date and rows >= 2:
        raise UserError(
            f"expected rows of two dates or more, the last one for validation and test, got "
            f"{rows} rows, all of {days[0].date}; leave timestamp out of the schema to cut a file "
            f"into {DAYS} parts, or give files for --validation and --test"
        )
    if rows < 2 or first < 1:
        raise UserError(
            f"expected at least {2 * DAYS} rows of one file, or two days or more, the last one "
            f"with at least 2 rows, to split them into training, validation and test, got "
            f"{sum(map(len, days))} rows in {len(days)} days"
        )
    test, validation, left = [], [], (rows + 1) // 2
    for number in range(first, len(days)):
        middle = min(left, len(days[number]))
        left -= middle
        if middle > 0:
            test.append([number, 0, middle])
        if middle < len(days[number]):
            validation.append([number, middle, len(days[number])])
    return {"train": _whole(days, range(first)), "test": test, "validation": validation}


def by_file(days: Sequence[Day], files: int) -> Splits:
    """Splits files: the last for test, the one before for validation, all others for training."""
    _check(days)
    own = {"train": range(files - 2), "validation": [files - 2], "test": [files - 1]}
    return {
        name: _whole(days, [i for i, day in enumerate(days) if day.file in own[name]])
        for name in own
    }


def _whole(days: Sequence[Day], numbers: Sequence[int]) -> list[list[int]]:
    return [[number, 0, len(days[number])] for number in numbers]


def _check(days: Sequence[Day]) -> None:
    empty = [day for day in days if not len(day)]
    if empty:
        raise UserError(
            f"expected rows in every day, got none in one of file {empty[0].file + 1}: too few "
            f"for {DAYS} days ({2 * DAYS} at least), or all of its lines were left out"
        )
