"""The smallest and largest ids of a directory's files: found once, then remembered.

They tell whether every id is a row of its table. Finding them reads all ids, half a terabyte for
Criteo's Terabyte. A prepared directory has them in its description; those of other directories are
kept in the cache directory. Files that have changed since are read again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.formats.compression import sampled_hash
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory, locked, write_json

Ranges = list[list[int]]
"""The smallest and largest id of each feature; `ABSENT` counts as one in any case."""

Notes = Mapping[str, Any]
"""Hash and ranges of files of ids, by name, as JSON; in the cache with the time of change."""

_CHUNK_ROWS = 1 << 16

_log = logging.getLogger(__name__)


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
    if not all(_is_known(day, bag_lengths, notes) for day in days):
        name = hashlib.blake2b(str(directory.resolve()).encode(), digest_size=16).hexdigest()
        memory = cache_directory() / "id_ranges" / f"{name}.json"
        try:
            with locked(memory.with_suffix(".lock"), f"the check of {directory}", wait=True):
                times = {day.path.name: {"mtime_ns": _time(day.path)} for day in days}
                notes = complete_notes(days, bag_lengths, {**notes, **_remembered(memory)})
                write_json(memory, {name: notes[name] | times[name] for name in notes})
        except OSError as error:
            _log.warning("%s: the next start reads all ids again: %s", directory, error)
            notes = complete_notes(days, bag_lengths, notes)
    found = np.array([notes[day.path.name]["ranges"] for day in days])
    return np.stack([found[..., 0].min(axis=0), found[..., 1].max(axis=0)], axis=1).tolist()


def complete_notes(
    days: Sequence[DayFiles], bag_lengths: Sequence[int], notes: Notes
) -> dict[str, Any]:
    """Notes of all days: valid ones as they are, others after reading the file."""
    found = {}
    for day in days:
        name = day.path.name
        if _is_known(day, bag_lengths, notes):
            found[name] = notes[name]
        else:
            _log.info("reading the ids of %s", day.path)
            # First the hash: the note of a file that changes meanwhile is invalid.
            found[name] = note(day.path, []) | {"ranges": _read_ranges(day, bag_lengths)}
    return found


def note(path: Path, ranges: Ranges) -> dict[str, Any]:
    """What a directory's description says of a file of ids; a copy of the file is the same."""
    return {"hash": sampled_hash(path), "ranges": ranges}


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns


def _is_known(day: DayFiles, bag_lengths: Sequence[int], notes: Notes) -> bool:
    """Whether there is a note of the file as it is now."""
    found = notes.get(day.path.name)
    if not isinstance(found, dict):
        return False
    ranges = found.get("ranges")
    return (
        isinstance(ranges, list)
        and len(ranges) == len(bag_lengths)
        and all(isinstance(pair, list) and [*map(type, pair)] == [int, int] for pair in ranges)
        and found.get("mtime_ns", _time(day.path)) == _time(day.path)
        and found.get("hash") == sampled_hash(day.path)
    )


def _remembered(memory: Path) -> Notes:
    try:
        notes = json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):  # none yet, or damaged: it is written anew
        return {}
    return notes if isinstance(notes, dict) else {}


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
