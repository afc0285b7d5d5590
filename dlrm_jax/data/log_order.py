"""All rows of a data set in the order of their log, whatever split they are in."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.data.day_files import row_numbers
from dlrm_jax.data.metadata import Metadata, check_unchanged
from dlrm_jax.data.preprocessing.options import Options

_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of one day and split, which are in the order of the log.

    Attributes:
        examples: the rows.
        first: number of the first row, if they follow each other in the log; otherwise what is
            added to their numbers.
        numbers: numbers of the rows, which ascend; None if they follow each other.
    """

    examples: Examples
    first: int
    numbers: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def stop(self) -> int:
        """The first number behind those of all rows."""
        count = len(self) if self.numbers is None else int(self.numbers[-1]) + 1
        return self.first + count

    def numbers_of(self, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """The numbers of the rows from start to stop."""
        if self.numbers is None:
            return np.arange(self.first + start, self.first + stop)
        return self.first + self.numbers[start:stop]


@dataclasses.dataclass(frozen=True)
class Log:
    """All rows of a data set, as they are stored, day after day.

    Attributes:
        parts: the rows; a row is earlier in the log than another one if its number is lower.
        is_ordered: whether the order of the log is known. If not, the rows of a day are numbered
            as they are stored: training, validation, test.
    """

    parts: Sequence[Part]
    is_ordered: bool

    @classmethod
    def following(cls, days: Sequence[Examples], is_ordered: bool = True) -> Log:
        """The rows of days in the order in which they are stored."""
        firsts = itertools.accumulate(map(len, days), initial=0)
        parts = [Part(day, first) for day, first in zip(days, firsts, strict=False) if len(day)]
        return cls(parts, is_ordered)

    @property
    def rows(self) -> Split:
        """The rows as they are stored."""
        return Split(tuple(part.examples for part in self.parts))

    def chunks(self) -> Iterator[tuple[int, Int64[np.ndarray, " n"], Examples]]:
        """Yields the rows, some at a time: the place of the first one, their numbers, and they."""
        before = 0
        for part in self.parts:
            for start in range(0, len(part), _CHUNK):
                stop = min(start + _CHUNK, len(part))
                yield before + start, part.numbers_of(start, stop), part.examples[start:stop]
            before += len(part)


def log_of(data: Dataset) -> Log:
    """The rows of all splits: by day and row where a description says them, else split by split.

    Raises:
        UserError: the description can't be read, or the directory was replaced by other data.
    """
    if data.directory is None:
        days = [day for split in data.splits.values() for day in split.days]
        return Log.following(days)
    metadata = Metadata.read(data.directory)
    by_row = Options.from_json(metadata.made_from["options"]).rule.by_row
    places = [
        (day, start, stop, examples)
        for name, split in data.splits.items()
        for (day, start, stop), examples in zip(metadata.splits[name], split.days, strict=True)
        if len(examples)
    ]
    places.sort(key=lambda place: place[:2])
    of_days = {
        day: row_numbers(data.directory, day, rows) if by_row else None
        for day, rows in enumerate(metadata.days)
    }
    check_unchanged(data.directory, data.fingerprint)
    if not by_row or any(numbers is None for numbers in of_days.values()):
        return Log.following([examples for *_, examples in places], not by_row)
    parts: list[Part] = []
    for day, same_day in itertools.groupby(places, key=lambda place: place[0]):
        first = max((part.stop for part in parts), default=0)
        numbers = of_days[day]
        assert numbers is not None
        parts += [
            Part(examples, first, numbers[start:stop]) for _, start, stop, examples in same_day
        ]
    return Log(parts, True)
