"""Cuts rows into days, and days into training, validation and test."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from dlrm_jax.data.preprocessing.split_rule import PARTS
from dlrm_jax.data.preprocessing.staging import Staged
from dlrm_jax.errors import UserError

DAYS = 7
"""Number of days that a single file is cut into, as many as Criteo Kaggle's file holds."""

Splits = dict[str, list[list[int]]]
"""Rows of each split, by name: a list of [day, first row in it, row after the last]."""


NO_ROWS = [[0, 0, 0]]
"""The rows of a split without any: the first day knows the widths of the arrays."""


@dataclasses.dataclass(frozen=True)
class Day:
    """Rows of one file that make one set of arrays.

    Attributes:
        file: index of the file.
        rows: ranges of its rows, one after the other: all of them, or those of each of
            `split_rule.PARTS` if each row says what it is for.
        date: date of all its rows; None if unknown.
    """

    file: int
    rows: tuple[range, ...]
    date: datetime.date | None = None

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def row(self, place: int) -> int:
        """The row of the file that is at a place of the day."""
        for rows in self.rows:
            if place < len(rows):
                return rows[place]
            place -= len(rows)
        raise IndexError(f"place {place} behind the rows of a day")


def days_by_file(rows: Sequence[int]) -> list[Day]:
    """One day per file."""
    return [Day(file, (range(count),)) for file, count in enumerate(rows)]


def even_days(rows: int) -> list[Day]:
    """Cuts a single file into seven days of equal length.

    If the number of rows isn't a multiple of seven, the first days are a row longer, as in the DLRM
    paper's implementation.
    """
    length, longer = divmod(rows, DAYS)
    starts = [day * length + min(day, longer) for day in range(DAYS + 1)]
    return [Day(0, (range(*pair),)) for pair in itertools.pairwise(starts)]


def days_by_date(paths: Sequence[Path], files: Sequence[Staged]) -> list[Day]:
    """Cuts files into one day per date (UTC); a date may continue in the next file.

    Raises:
        UserError: times go back.
    """
    days, last = [], {}
    for number, (path, file) in enumerate(zip(paths, files, strict=True)):
        dated: dict[datetime.date, list[range]] = {}
        for part, rows in enumerate(file.ranges):
            row = rows.start
            for chunk in file.chunks(part):
                times = pl.scan_ipc(chunk, glob=False).select("time").collect()["time"]
                before = times.shift(1, fill_value=last.get(part))
                if (times < before).any():
                    bad = (times < before).arg_max() or 0
                    kind = f" for {PARTS[part]}" if file.parts else ""
                    raise UserError(
                        f"{path}, row {row - rows.start + bad + 1} of those kept{kind}: its time "
                        f"{times[bad]} is before that of the row before, {before[bad]}; sort logs "
                        f"by time, and name files in the order of time"
                    )
                for date, length in (
                    times.dt.date().rle().struct.unnest().select("value", "len").rows()
                ):
                    ranges = dated.setdefault(date, [range(0)] * len(file.ranges))
                    start = ranges[part].start if ranges[part] else row
                    row += length
                    ranges[part] = range(start, row)
                last[part] = times[-1] if len(times) else last.get(part)
        days += [Day(number, tuple(dated[date]), date) for date in sorted(dated)]
        if not dated:
            days.append(Day(number, (range(0),) * len(file.ranges)))
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
    check_not_empty(days[:first])
    if first < 1 and days[0].date and rows >= 2:
        raise UserError(
            f"expected rows of two dates or more, the last one for validation and test, got "
            f"{rows} rows, all of {days[0].date}; give --split=time:0.1,0.1 to hold out the last "
            f"rows, or files for --validation and --test"
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


def by_file(days: Sequence[Day], files: int, held_out: int) -> Splits:
    """Splits files: the last for test, all others for training.

    If two files are held out, the one before the last is for validation.
    """
    check_not_empty(days)
    first = files - held_out
    own = {"train": range(first), "validation": range(first, files - 1), "test": [files - 1]}
    found = {
        name: _whole(days, [i for i, day in enumerate(days) if day.file in own[name]])
        for name in own
    }
    return {name: rows or NO_ROWS for name, rows in found.items()}


def by_part(days: Sequence[Day]) -> Splits:
    """Splits of days with the rows of each part one after the other; a part may have no rows."""
    splits: Splits = {name: [] for name in PARTS}
    for number, day in enumerate(days):
        stops = itertools.accumulate(map(len, day.rows), initial=0)
        for name, (start, stop) in zip(PARTS, itertools.pairwise(stops), strict=True):
            if start < stop:
                splits[name].append([number, start, stop])
    return {name: rows or NO_ROWS for name, rows in splits.items()}


def for_training(days: Sequence[Day]) -> Splits:
    """All rows for training."""
    check_not_empty(days)
    return {"train": _whole(days, range(len(days))), "validation": NO_ROWS, "test": NO_ROWS}


def between(days: Sequence[Day], start: int, stop: int) -> list[list[int]]:
    """The rows from start to stop of all days, as `Splits` has them."""
    found, first = [], 0
    for number, day in enumerate(days):
        rows = range(max(start - first, 0), min(stop - first, len(day)))
        if rows:
            found.append([number, rows.start, rows.stop])
        first += len(day)
    return found or NO_ROWS


def rows_of(splits: Splits, name: str) -> int:
    """The number of rows of a split."""
    return sum(stop - start for _, start, stop in splits[name])


def training_rows(splits: Splits, days: Sequence[Day], files: int) -> list[int]:
    """The number of rows of each file that are for training; they are its first ones."""
    counts = [0] * files
    for day, start, stop in splits["train"]:
        counts[days[day].file] += stop - start
    return counts


def times_of(splits: Splits, days: Sequence[Day], files: Sequence[Staged]) -> dict[str, list[str]]:
    """The first and the last time of the rows of each split that has rows."""
    found = {}
    for name, ranges in splits.items():
        if rows_of(splits, name):
            ends = [(ranges[0][0], ranges[0][1]), (ranges[-1][0], ranges[-1][2] - 1)]
            places = [(days[day].file, days[day].row(place)) for day, place in ends]
            times = [files[file].scan().select("time").slice(row, 1) for file, row in places]
            found[name] = [str(time.collect().item()) for time in times]
    return found


def _whole(days: Sequence[Day], numbers: Sequence[int]) -> list[list[int]]:
    return [[number, 0, len(days[number])] for number in numbers]


def check_not_empty(days: Sequence[Day]) -> None:
    """Checks that every day has rows.

    Raises:
        UserError: one has none.
    """
    empty = [day for day in days if not len(day)]
    if empty:
        raise UserError(
            f"expected rows in every day, got none in one of file {empty[0].file + 1}: too few "
            f"for {DAYS} days ({2 * DAYS} at least), or all of its lines were left out"
        )
