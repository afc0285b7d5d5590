"""The state of a map from ids to rows: arrays by row, and a record that takes a batch back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Int64, Shaped, UInt8

from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.dynamic_ids.policy import DynamicIds, whole
from dlrm_jax.errors import UserError

OCCUPANT = np.dtype(
    [("key", np.uint64), ("count", np.uint32), ("batch", np.uint32), ("last_seen", np.int64)]
)
"""A row's id, the number of times it was seen, the batch that saw it last, and when; count 0 is a
free row. ``batch`` counts from the start of the process and is no part of what is saved."""

MOST_TIME = 2**62
"""One more than the last time that a clock may show: differences fit int64."""


@dataclasses.dataclass(frozen=True)
class Undo:
    """What a batch has changed in a map, as it was before.

    Attributes:
        rows: rows that changed, [E] in the order of the changes; a row may occur twice.
        before: state of each row before its change, [E] of `OCCUPANT`.
        cells: cells of the sketch that changed, [S]; a cell may occur twice.
        cells_before: value of each cell before, [S].
        sketch: whole sketch before all of it was halved; None if it wasn't.
        numbers: clock, time of the last sweep, and additions to the sketch before.
        batch: number of the batch, which no other one of this process has, in any map.
        previous: number of the map's batch before; 0 before its first since it was made or read.
    """

    rows: Int32[np.ndarray, " E"]
    before: Shaped[np.ndarray, " E"]
    cells: Int64[np.ndarray, " S"]
    cells_before: UInt8[np.ndarray, " S"]
    sketch: UInt8[np.ndarray, " C"] | None
    numbers: tuple[int, int, int]
    batch: int
    previous: int


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a batch did to a map's rows and sketch.

    Attributes:
        rows: row of each id, [N]; undefined if too few rows were there.
        fresh: rows that new ids got, [F] in the order of their first occurrence.
        needed: number of different rows that the batch needs.
        changed: rows that changed, as `Undo.rows`.
        before: states before, as `Undo.before`.
        cells: cells of the sketch that changed, as `Undo.cells`.
        cells_before: values before, as `Undo.cells_before`.
    """

    rows: Int32[np.ndarray, " N"]
    fresh: Int32[np.ndarray, " F"]
    needed: int
    changed: Int32[np.ndarray, " E"]
    before: Shaped[np.ndarray, " E"]
    cells: Int64[np.ndarray, " S"]
    cells_before: UInt8[np.ndarray, " S"]


class Occupants:
    """Who has which row of a table.

    Attributes:
        policy: rules.
        seed: seed of all hashes.
        by_row: occupant of each row, [rows] of `OCCUPANT`.
        sketch: counts of ids without a row, [cells].
        live: number of rows that have an id.
        lowest_free: row below which no row is free.
        clock: time of the last batch.
        swept: time of the last sweep for old ids.
        additions: occurrences that the sketch has counted since its last halving.

    Args:
        rows: rows of the table, defaults included.
        policy: rules.
        seed: seed of all hashes, 0 to 2^63 - 1.

    Raises:
        UserError: there are too few rows, or the seed is out of range.
    """

    def __init__(self, rows: int, policy: DynamicIds, seed: int):
        policy.check_rows(rows)
        self.policy, self.seed = policy, whole("seed", seed, 0, 2**63 - 1)
        self.by_row = np.zeros(rows, OCCUPANT)
        self.sketch = np.zeros(policy.sketch_cells(rows), np.uint8)
        self.live, self.lowest_free = 0, policy.defaults
        self.clock = self.swept = self.additions = 0

    @property
    def capacity(self) -> int:
        """The number of rows that ids may have."""
        return len(self.by_row) - self.policy.defaults

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The clock, the time of the last sweep, and the additions to the sketch."""
        return self.clock, self.swept, self.additions

    def expired(self, now: int) -> Int32[np.ndarray, " n"]:
        """Rows that ids haven't been seen in for longer than the policy's age.

        Args:
            now: time.
        """
        assert self.policy.max_age is not None
        old = self.by_row["last_seen"] < now - self.policy.max_age
        return np.flatnonzero(old & (self.by_row["count"] > 0)).astype(np.int32)

    def undo(self, undo: Undo) -> None:
        """Restores all but the rows, which the index of ids must follow.

        Args:
            undo: record of the last batch.
        """
        _restore_cells(self.sketch, undo)
        self.clock, self.swept, self.additions = undo.numbers

    def count_rows(self) -> None:
        """Counts live rows anew."""
        self.live = int(np.count_nonzero(self.by_row["count"]))
        self.lowest_free = self.policy.defaults

    def arrays(self, undone: Sequence[Undo] = ()) -> dict[str, np.ndarray]:
        """Copies of all that a map is, for a checkpoint.

        Args:
            undone: records of the last batches, the latest last, that the copies are taken back
                by.

        Returns:
            ``keys`` uint64, ``counts`` uint32 and ``last_seen`` int64, [rows] each, zeros in free
            rows; ``sketch`` uint8, if the policy has one; ``numbers`` int64: clock, last sweep,
            additions, seed. None is empty, which not every format can write.
        """
        by_row, sketch = self.by_row.copy(), self.sketch.copy()
        numbers = self.numbers
        for undo in reversed(undone):
            # A row's first entry is its oldest state, and the last assignment is the one that
            # remains.
            by_row[undo.rows[::-1]] = undo.before[::-1]
            _restore_cells(sketch, undo)
            numbers = undo.numbers
        found = {
            "keys": by_row["key"].copy(),
            "counts": by_row["count"].copy(),
            "last_seen": by_row["last_seen"].copy(),
            "numbers": np.array([*numbers, self.seed], np.int64),
        }
        return found | {"sketch": sketch} if len(sketch) else found

    def keys(self, undone: Sequence[Undo] = ()) -> Keys:
        """Copies of the ids of the rows.

        Args:
            undone: records of the last batches, see `arrays`.
        """
        keys, live = self.by_row["key"].copy(), self.by_row["count"] > 0
        for undo in reversed(undone):
            keys[undo.rows[::-1]] = undo.before["key"][::-1]
            live[undo.rows[::-1]] = undo.before["count"][::-1] > 0
        return Keys(keys, live)

    @classmethod
    def from_arrays(cls, policy: DynamicIds, arrays: Mapping[str, np.ndarray]) -> Occupants:
        """The state that `arrays` gave.

        Args:
            policy: rules, which decide the sizes of the arrays.
            arrays: arrays by name.

        Raises:
            UserError: an array is missing, has another dtype or shape, or contradicts another.
        """
        numbers = _array(arrays, "numbers", np.int64, 4)
        keys = _array(arrays, "keys", np.uint64)
        state = cls(len(keys), policy, int(numbers[3]))
        state.by_row["key"] = keys
        state.by_row["count"] = _array(arrays, "counts", np.uint32, len(keys))
        state.by_row["last_seen"] = _array(arrays, "last_seen", np.int64, len(keys))
        if len(state.sketch) or "sketch" in arrays:  # earlier commits wrote empty ones, too
            state.sketch = _array(arrays, "sketch", np.uint8, len(state.sketch)).copy()
        state.clock, state.swept, state.additions = map(int, numbers[:3])
        _check(state)
        state.count_rows()
        return state


def _restore_cells(sketch: UInt8[np.ndarray, " C"], undo: Undo) -> None:
    if undo.sketch is not None:
        sketch[:] = undo.sketch
    else:
        sketch[undo.cells[::-1]] = undo.cells_before[::-1]


def _array(
    arrays: Mapping[str, np.ndarray], name: str, dtype: type[np.generic], size: int | None = None
) -> np.ndarray:
    if name not in arrays:
        raise damaged(f"there is no array {name}")
    found = arrays[name]
    if found.dtype != dtype or found.ndim != 1 or size not in (None, len(found)):
        shape = "n" if size is None else size
        raise damaged(
            f"{name}: expected {np.dtype(dtype).name} of shape ({shape},), got {found.dtype.name} "
            f"of shape {found.shape}"
        )
    return found


def _check(state: Occupants) -> None:
    if not (0 <= state.swept <= state.clock < MOST_TIME and state.additions >= 0):
        raise damaged(
            f"clock {state.clock}, last sweep {state.swept} and additions {state.additions} don't "
            f"fit each other"
        )
    alive = state.by_row["count"] > 0
    if alive[: state.policy.defaults].any():
        raise damaged(f"one of the {state.policy.defaults} default rows belongs to an id")
    for name in ("key", "last_seen"):
        if state.by_row[name][~alive].any():
            row = np.flatnonzero(~alive & (state.by_row[name] != 0))[0]
            raise damaged(f"row {row} is free and has a {name}")
    seen = state.by_row["last_seen"]
    if (seen < 0).any() or (seen > state.clock).any():
        row = np.flatnonzero((seen < 0) | (seen > state.clock))[0]
        raise damaged(f"row {row} was seen at {seen[row]}, the clock shows {state.clock}")
    keys = np.sort(state.by_row["key"][alive])
    if (keys[1:] == keys[:-1]).any():
        key = keys[1:][keys[1:] == keys[:-1]][0]
        rows = np.flatnonzero(alive & (state.by_row["key"] == key))[:2].tolist()
        raise damaged(f"rows {rows[0]} and {rows[1]} both belong to id {key}")


def damaged(reason: str) -> UserError:
    """The error of arrays that no map has given.

    Args:
        reason: contradiction, for the message.
    """
    return UserError(f"id map: {reason}; restore an undamaged checkpoint, made with this policy")
