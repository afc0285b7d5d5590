"""Days, and which of their rows are for training, validation and test."""

from __future__ import annotations

import dataclasses
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
    """

    file: int
    start: int
    stop: int

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
    """The rows of each date (UTC) of each file as a day.

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
            times = pl.read_ipc(part, columns=["time"])["time"]
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
                    days.append(Day(number, start, row))
                    start = row
                date, row = today, row + length
            last = times[-1] if len(times) else last
        days.append(Day(number, start, row))
    return days


def by_day(days: Sequence[Day]) -> Splits:
    """All days but the last for training, the first half of that one for test.

    Test has the odd row, as in the DLRM paper's implementation.

    Raises:
        UserError: a split would be empty.
    """
    last = len(days) - 1
    _check(days[:-1])
    if len(days[last]) < 2 or last < 1:
        raise UserError(
            f"expected at least {2 * DAYS} rows of one file, or two days or more, the last one "
            f"with at least 2 rows, to split them into training, validation and test, got "
            f"{sum(map(len, days))} rows in {len(days)} days"
        )
    middle = (len(days[last]) + 1) // 2
    return {
        "train": _whole(days, range(last)),
        "test": [[last, 0, middle]],
        "validation": [[last, middle, len(days[last])]],
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
