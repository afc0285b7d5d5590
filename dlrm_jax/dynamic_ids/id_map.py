"""The map from 64-bit ids to the rows of a table, which changes while it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Integer, UInt64

from dlrm_jax.dynamic_ids.occupants import MOST_TIME, OCCUPANT, Occupants, Undo
from dlrm_jax.dynamic_ids.plain_id_map import Changes, PlainIdMap
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError, shown


class Translated(NamedTuple):
    """A batch of ids as rows.

    Attributes:
        rows: row of each id, [N] in the order of the ids.
        fresh: rows whose id is new, [F] in the order in which the ids first occur: their values
            and optimizer state must begin afresh before the batch is trained on.
        undo: record that takes the map back to before the batch.
    """

    rows: Int32[np.ndarray, " N"]
    fresh: Int32[np.ndarray, " F"]
    undo: Undo


class IdMap:
    """A map from ids to rows; no two ids have the same row, unless it is a default.

    The same batches give the same rows, with and without native kernels. Ids are any 64 bits;
    signed ones count as the unsigned ones of the same bits. Rows are handed out ascending.

    Args:
        rows: rows of the table, defaults included.
        policy: rules by which ids get and lose rows.
        seed: seed of all hashes, 0 to 2^63 - 1.

    Raises:
        UserError: there are too few rows, or the seed is out of range.
    """

    def __init__(self, rows: int, policy: DynamicIds, seed: int = 0):
        self._start(Occupants(rows, policy, seed))

    def _start(self, state: Occupants) -> None:
        self._state = state
        self._engine = PlainIdMap(state)

    @classmethod
    def from_arrays(cls, policy: DynamicIds, arrays: Mapping[str, np.ndarray]) -> IdMap:
        """The map that `arrays` gave.

        Args:
            policy: rules of that map; those of admission and eviction may differ.
            arrays: arrays by name.

        Raises:
            UserError: an array is missing, has another dtype or shape, or contradicts another.
        """
        made = cls.__new__(cls)
        made._start(Occupants.from_arrays(policy, arrays))
        return made

    @property
    def live(self) -> int:
        """The number of ids that have a row."""
        return self._state.live

    @property
    def capacity(self) -> int:
        """The number of ids that may have a row."""
        return self._state.capacity

    @property
    def clock(self) -> int:
        """The time of the last batch; 0 before the first."""
        return self._state.clock

    def translate(self, ids: Integer[np.ndarray, " N"], now: int) -> Translated:
        """The rows of a batch; ids without a row get one if the policy admits them.

        A known id is counted and seen now. Where rows are lacking, ids that aren't in this batch
        lose theirs. Ids that aren't admitted read a default row.

        Args:
            ids: ids of 64 bits or less, in the order in which they count.
            now: time of the batch, in any unit, such as steps or seconds; at least the last one.

        Raises:
            UserError: the batch needs more rows than there are, or the clock runs backwards. The
                map is as before.
        """
        keys = as_keys(ids)
        self._check_clock(now)
        sketch, numbers = self._begin(now)
        swept = self._sweep(now)
        changes = self._engine.translate(keys, now)
        undo = _record(swept, changes, sketch, numbers)
        if changes.needed > self.capacity:
            self.undo(undo)
            raise UserError(
                f"a batch of {len(ids)} ids needs rows for {changes.needed} different ones, the "
                f"table has {self.capacity} besides its defaults; give it more rows, make batches "
                f"smaller, or admit ids later"
            )
        self._state.clock = now
        return Translated(changes.rows, np.array(changes.fresh, np.int32), undo)

    def find(self, ids: Integer[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
        """The rows of ids, for evaluation and serving; nothing changes.

        Args:
            ids: ids of 64 bits or less.

        Returns:
            Rows; that of an id without one is a default, a row below ``policy.defaults``.
        """
        return self._engine.find(as_keys(ids))

    def undo(self, undo: Undo) -> None:
        """Takes the map itself back to before its last batch.

        Args:
            undo: record of that batch.
        """
        self._engine.restore(undo.rows, undo.before)
        self._state.undo(undo)

    def arrays(self, undone: Sequence[Undo] = ()) -> dict[str, np.ndarray]:
        """Copies of all that the map is, for a checkpoint; see `Occupants.arrays`.

        Args:
            undone: records of the last batches, the latest last, which the copies are without:
                those that were translated ahead of the checkpoint's step.
        """
        return self._state.arrays(undone)

    def _check_clock(self, now: int) -> None:
        if not isinstance(now, int | np.integer) or not 0 <= now < MOST_TIME:
            raise UserError(f"now: expected an integer from 0 to 2^62 - 1, got {shown(now)}")
        if now < self.clock:
            raise UserError(
                f"now: the clock of an id map can't run backwards, got {now} after {self.clock}; "
                f"give batches in the order of their time"
            )

    def _begin(self, now: int) -> tuple[np.ndarray | None, tuple[int, int, int]]:
        """Halves the sketch if it is due; the sketch before that, and the numbers."""
        state = self._state
        numbers = state.clock, state.swept, state.additions
        if state.additions < state.policy.sketch_window(len(state.by_row)):
            return None, numbers
        sketch = state.sketch.copy()
        state.sketch >>= 1
        state.additions //= 2
        return sketch, numbers

    def _sweep(self, now: int) -> tuple[np.ndarray, np.ndarray]:
        """Frees rows of old ids if that is due: the rows, and what they were before."""
        state = self._state
        every = state.policy.sweep_every
        if every is None or now - state.swept < every:
            return np.zeros(0, np.int32), np.zeros(0, OCCUPANT)
        rows = state.expired(now)
        before = state.by_row[rows]
        self._engine.remove(rows)
        state.swept = int(now)
        return rows, before


def as_keys(ids: Integer[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """Ids as unsigned integers of 64 bits, by their bits.

    Args:
        ids: ids.
    """
    if ids.dtype == np.uint64:
        return np.ascontiguousarray(ids)
    return np.ascontiguousarray(ids, np.int64).view(np.uint64)


def _record(
    swept: tuple[np.ndarray, np.ndarray],
    changes: Changes,
    sketch: np.ndarray | None,
    numbers: tuple[int, int, int],
) -> Undo:
    rows = np.array([row for row, _ in changes.changed], np.int32)
    before = np.array([was for _, was in changes.changed], OCCUPANT)
    cells = np.array([cell for cell, _ in changes.cells], np.int64)
    cells_before = np.array([was for _, was in changes.cells], np.uint8)
    return Undo(
        np.concatenate([swept[0], rows]),
        np.concatenate([swept[1], before]),
        cells,
        cells_before,
        sketch,
        numbers,
    )
