"""Ids with the temporal locality of a real access trace.

LRU stack distances describe locality, after Mattson et al., "Evaluation techniques for storage
hierarchies" (IBM Systems Journal, 1970). The distance of an access is the number of distinct ids
since the previous access to the same id, that id included. It is 1 for an immediate repetition; an
access to a new id has none. An LRU cache of c rows hits the distances up to c. The DLRM reference
describes traces in the same way, with 0 for new ids.
"""

from __future__ import annotations

import heapq
import json
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Int64, Integer

from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json
from dlrm_jax.json_objects import without_repeats

NEW = 0
"""The distance of an access to an id that hasn't occurred before."""


@dataclass(frozen=True)
class StackProfile:
    """The frequency of each stack distance.

    Attributes:
        distances: distances in ascending order; `NEW` comes first, as every trace begins with it.
        counts: number of accesses at each distance.

    Raises:
        UserError: the two don't describe a histogram.
    """

    distances: tuple[int, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        largest = max(self.distances + self.counts, default=0)
        if largest >= 2**63:
            raise UserError(f"a profile's numbers must be less than 2**63, got {largest}.")
        ascending = all(a < b for a, b in zip(self.distances, self.distances[1:], strict=False))
        if self.distances[:1] != (NEW,) or not ascending:
            raise UserError(
                "a profile's distances must ascend from 0 (new ids), got "
                f"{_shown(self.distances)}; was the file written by --save_profile?"
            )
        if len(self.counts) != len(self.distances) or min(self.counts) < 1:
            raise UserError(
                f"a profile needs a count of at least 1 for each of its {len(self.distances)} "
                f"distances, got {_shown(self.counts)} ({len(self.counts)} in all)."
            )

    @classmethod
    def measure(cls, trace: Integer[np.ndarray, " N"]) -> StackProfile:
        """Counts the distances of a trace of ids.

        Raises:
            UserError: the trace is empty.
        """
        if not len(trace):
            raise UserError("a trace needs at least one access, got none.")
        distances, counts = np.unique(stack_distances(trace), return_counts=True)
        return cls(tuple(distances.tolist()), tuple(counts.tolist()))

    def save(self, path: Path) -> None:
        """Writes the profile as JSON."""
        path.write_text(
            json.dumps({"distances": self.distances, "counts": self.counts}) + "\n",
            encoding="utf-8",
        )

    @classmethod
    def load(cls, path: Path) -> StackProfile:
        """Reads a file that `save` wrote.

        Raises:
            UserError: the file isn't a profile.
            OSError: the file can't be read.
        """
        try:
            fields = read_json(path, object_pairs_hook=without_repeats)
            distances, counts = tuple(fields["distances"]), tuple(fields["counts"])
            if not all(type(value) is int for value in distances + counts):
                raise TypeError("not all numbers are integers")
            return cls(distances, counts)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: expected a JSON object with lists of integers, distances and counts, as "
                f"--save_profile writes it, got something else ({type(error).__name__}: {error})."
            ) from None


def read_trace(path: Path) -> Int64[np.ndarray, " N"]:
    """Reads a text file with one integer id per line.

    Raises:
        UserError: the file is empty, or a line isn't an integer; the message names the line.
        OSError: the file can't be read.
    """
    lines = path.read_bytes().split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise UserError(f"{path} is empty; expected one integer id per line.")
    ids = array("q")
    for number, line in enumerate(lines, 1):
        try:
            ids.append(int(line))
        except (ValueError, OverflowError):
            raise UserError(
                f"{path}, line {number}: expected one integer id of 64 bits, found "
                f"{line[:40].decode(errors='backslashreplace')!r}. Correct or remove the line."
            ) from None
    return np.array(ids, np.int64)


def stack_distances(trace: Integer[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """The stack distance of each access of a trace of ids, `NEW` for the first access to an id.

    It takes O(N log N) time, in NumPy. Let p be the previous access to the id of access t. A
    distinct id since p is one whose first access after p has its own previous access at or before
    p; all accesses up to p have theirs there, too. So the distance is the number of accesses before
    t with a previous one at or before p, less the p of them that lie before p.
    """
    accesses = np.arange(len(trace))
    by_id = np.argsort(trace, kind="stable")
    repeated = trace[by_id[1:]] == trace[by_id[:-1]]
    previous = np.full(len(trace), -1)
    previous[by_id[1:][repeated]] = by_id[:-1][repeated]
    ranks = np.empty(len(trace), np.int64)
    ranks[np.argsort(previous, kind="stable")] = accesses
    return np.where(previous < 0, NEW, _smaller_before(ranks) - previous)


def _smaller_before(ranks: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """The number of smaller elements before each one; the elements are 0 to N - 1.

    Elements are grouped by their high bits, a bit more at each level, in their original order
    within a group (a wavelet tree). Two of them part at the highest bit that differs; there the one
    with a 1 counts those with a 0 that stand before it.
    """
    counts = np.zeros(len(ranks), np.int64)
    places = np.arange(len(ranks))
    current, origin = ranks, places
    for bit in reversed(range(max(len(ranks) - 1, 0).bit_length())):
        # As the elements are all numbers from 0 on, a group's first place is its lowest number.
        first = current >> (bit + 1) << (bit + 1)
        is_one = (current >> bit & 1).astype(bool)
        zeros = np.concatenate([[0], np.cumsum(~is_one)])
        zeros_before = zeros[:-1] - zeros[first]
        counts[origin[is_one]] += zeros_before[is_one]
        ones_place = places + (1 << bit) - zeros_before
        place = np.where(is_one, ones_place, first + zeros_before)
        moved = np.empty_like(current), np.empty_like(origin)
        moved[0][place], moved[1][place] = current, origin
        current, origin = moved
    return counts


class LocalIds:
    """A stream of ids whose stack distances follow a profile.

    Distances are drawn independently. A distance larger than the number of ids so far can't occur
    yet: a new id takes its place, and the distance replaces a later new id. So new ids come early,
    as in the trace, and the histogram is kept. Distances beyond the table become the distance of
    its least recently used row, as do new ids once every row has been used.

    Ids count from 0 in the order of their first access. Memory is 4 bytes per id in use.

    Args:
        profile: the distances to reproduce.
        rows: number of distinct ids, up to 2**31 - 1.
        rng: source of random numbers; drawing ids in several calls gives the same ids.
    """

    def __init__(self, profile: StackProfile, rows: int, rng: np.random.Generator):
        counts = np.asarray(profile.counts, np.float64)
        self._cumulative: Float64[np.ndarray, " K"] = np.cumsum(counts / counts.sum())
        self._distances = np.minimum(np.asarray(profile.distances, np.int64), rows)
        self._rows, self._rng = rows, rng
        self._stack = array("i")  # the most recently used id is the last one
        self._postponed: list[int] = []  # a heap

    def draw(self, examples: int) -> Int32[np.ndarray, " N"]:
        """Draws the next ``examples`` ids."""
        # The last step of the cumulative sum may be a rounding error below 1.
        drawn = np.searchsorted(self._cumulative[:-1], self._rng.random(examples), side="right")
        stack, postponed = self._stack, self._postponed
        ids = []
        for distance in self._distances[drawn].tolist():
            if distance > len(stack):
                heapq.heappush(postponed, distance)
                distance = NEW
            elif distance == NEW and postponed and postponed[0] <= len(stack):
                distance = heapq.heappop(postponed)
            if distance == NEW and len(stack) == self._rows:
                distance = self._rows
            recent = len(stack) if distance == NEW else stack.pop(-distance)
            stack.append(recent)
            ids.append(recent)
        return np.array(ids, np.int32)


def _shown(values: tuple[int, ...]) -> str:
    """The first of many values, for a message."""
    return ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
