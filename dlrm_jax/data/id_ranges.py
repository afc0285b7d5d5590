"""The smallest and largest ids of a directory's files: found once, then remembered.

They tell whether every id is a row of its table. Finding them reads all ids, half a terabyte for
Criteo's Terabyte. A prepared directory has them in its description; those of other directories, and
of files whose time of change is another one than there, are kept in the cache, see `memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.memory import Notes, completed, remembered, stamp
from dlrm_jax.errors import UserError

Ranges = list[list[int]]
"""The smallest and largest id of each feature; `ABSENT` counts as one in any case."""

_KEY = "ranges"
_CHUNK_ROWS = 1 << 16


class IdRanges:
    """The ranges of ids that are seen in chunks.

    Args:
        bag_lengths: ids per example of each feature; the bags lie side by side.
    """

    def __init__(self, bag_lengths: Sequence[int]):
        self._starts = np.cumsum([0, *bag_lengths[:-1]])
        self._low = self._high = np.full(sum(bag_lengths), ABSENT, np.int64)

    def add(self, chunk: Integer[np.ndarray, "n C"]) -> None:
        """Takes the next rows into account."""
        self._low = np.minimum(self._low, chunk.min(axis=0, initial=ABSENT))
        self._high = np.maximum(self._high, chunk.max(axis=0, initial=ABSENT))

    def ranges(self) -> Ranges:
        """The ranges so far."""
        low = np.minimum.reduceat(self._low, self._starts)
        high = np.maximum.reduceat(self._high, self._starts)
        return np.stack([low, high], axis=1).tolist()


def find_ranges(
    directory: Path, days: Sequence[DayFiles], bag_lengths: Sequence[int], notes: Notes
) -> Ranges:
    """The ranges over all days. Files are read if nothing is known of them.

    Args:
        directory: directory of the days.
        days: files of each day.
        bag_lengths: ids per example of each feature.
        notes: notes of the directory's own description; empty without one.

    Raises:
        UserError: an id doesn't fit into int32.
    """
    files, is_valid = _readers(days, bag_lengths), _are_ranges(bag_lengths)
    notes = remembered(directory, files, _KEY, notes, is_valid)
    found = np.array([notes[path.name][_KEY] for path in files])
    return np.stack([found[..., 0].min(axis=0), found[..., 1].max(axis=0)], axis=1).tolist()


def complete_notes(
    days: Sequence[DayFiles], bag_lengths: Sequence[int], notes: Notes
) -> dict[str, Any]:
    """Notes of all days: valid ones as they are, others after reading the file."""
    return completed(_readers(days, bag_lengths), _KEY, notes, _are_ranges(bag_lengths))


def note(path: Path, ranges: Ranges) -> dict[str, Any]:
    """What a directory's description says of a file of ids that was just written."""
    return stamp(path) | {_KEY: ranges}


def _readers(
    days: Sequence[DayFiles], bag_lengths: Sequence[int]
) -> dict[Path, Callable[[], Ranges]]:
    return {day.path: lambda day=day: _read_ranges(day, bag_lengths) for day in days}


def _are_ranges(bag_lengths: Sequence[int]) -> Callable[[Any], bool]:
    return lambda found: (
        isinstance(found, list)
        and len(found) == len(bag_lengths)
        and all(isinstance(pair, list) and [*map(type, pair)] == [int, int] for pair in found)
    )


def _read_ranges(day: DayFiles, bag_lengths: Sequence[int]) -> Ranges:
    ranges = []
    for number, bags in enumerate(day.id_arrays):
        found = IdRanges([bags.shape[1]] if day.multi_hot else bag_lengths)
        for start in range(0, len(bags), _CHUNK_ROWS):
            chunk = bags[start : start + _CHUNK_ROWS]
            if bags.dtype == np.int64:
                outside = chunk != chunk.astype(np.int32)
                if outside.any():
                    row, column = np.argwhere(outside)[0]
                    member = f", member {number}.npy" if day.multi_hot else ""
                    raise UserError(
                        f"{day.path}{member}, row {start + row}, column {column} (both from 0): "
                        f"expected an id that fits into int32, got {chunk[row, column]}; prepare "
                        f"the data again"
                    )
            found.add(chunk)
        ranges += found.ranges()
    return ranges
