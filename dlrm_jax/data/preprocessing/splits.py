"""Days, and which of their rows are for training, validation and test."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from dlrm_jax.data.preprocessing.staging import Staged
from dlrm_jax.errors import UserError

DAYS = 7
"""Days that a single file is cut into; where one ends in Criteo Kaggle's isn't marked."""

Splits = dict[str, list[list[int]]]
"""By name, its parts: [day, first row in it, row after the last]."""


@dataclasses.dataclass(frozen=True)
class Day:
    """Consecutive rows of one file that make one set of arrays.

    Attributes:
        file: index of the file.
        start: its first row.
        stop: the row after its last.
        date: that all its rows are of, if that is known.
    """

    file: int
    start: int
    stop: int
    date: datetime.date | None = None

    def __len__(self) -> int:
        return self.stop - self.start


def days_of(rows: Sequence[int]) -> list[Day]:
    """Every file as a day."""
    return [Day(file, 0, count) for file, count in enumerate(rows)]


def even_days(rows: int) -> list[Day]:
    """A single file in seven days of equal length.

    The first days are a row longer where the rows aren't a multiple of seven, as in the DLRM
    paper's implementation.
    """
    each, longer = divmod(rows, DAYS)
    days, start = [], 0
    for day in range(DAYS):
        days.append(Day(0, start, start + each + (day < longer)))
        start = days[-1].stop
    return days


def dates(paths: Sequence[Path], files: Sequence[Staged]) -> list[Day]:
    """The rows of each date (UTC) of each file as days; a date may go on in the next file.

    Args:
        paths: of the files, for messages.
        files: with a column ``time``.

    Raises:
        UserError: times go back.
    """
    days, last = [], None
    for number, (path, file) in enumerate(zip(paths, files, strict=True)):
        start, row, date = 0, 0, None
        for part in file.parts():
            times = pl.scan_ipc(part, glob=False).select("time").collect()["time"]
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
    """All days but the last for training, the first half of that one for test.

    Test has the odd row, as in the DLRM paper's implementation. A date that several files share is
    one day.

    Raises:
        UserError: a split would be empty.
    """
    first = len(days) - 1
    while first > 0 and days[first].date and days[first - 1].date == days[first].date:
        first -= 1
    last = range(first, len(days))
    rows = sum(len(days[number]) for number in last)
    _check(days[:first])
    if rows < 2 or first < 1:
        raise UserError(
            f"expected at least {2 * DAYS} rows of one file, or two days or more, the last one "
            f"with at least 2 rows, to split them into training, validation and test, got "
            f"{sum(map(len, days))} rows in {len(days)} days"
        )
    test, validation, before = [], [], 0
    for number in last:
        middle = min(max((rows + 1) // 2 - before, 0), len(days[number]))
        test.append([number, 0, middle])
        validation.append([number, middle, len(days[number])])
        before += len(days[number])
    return {
        "train": _whole(days, range(first)),
        "test": [part for part in test if part[1] < part[2]],
        "validation": [part for part in validation if part[1] < part[2]],
    }


def by_file(days: Sequence[Day], files: int) -> Splits:
    """The last file for test, the one before for validation, all others for training."""
    _check(days)
    places = {"train": range(files - 2), "validation": [files - 2], "test": [files - 1]}
    return {
        name: _whole(days, [i for i, day in enumerate(days) if day.file in own])
        for name, own in places.items()
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
