"""The changes of a map from ids to rows in plain Python: slow, and the model of the native ones."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32, Shaped, UInt64

from dlrm_jax.dynamic_ids.eviction import in_order
from dlrm_jax.dynamic_ids.id_hashes import (
    DEFAULT,
    DRAW,
    SKETCH,
    draw,
    mix,
    salt,
    scaled,
    sketch_places,
)
from dlrm_jax.dynamic_ids.occupants import OCCUPANT, Changes, Occupants

_MOST = 2**32 - 1  # of a count


@dataclasses.dataclass
class _Batch:
    """What a batch has done so far: see `Changes`."""

    rows: Int32[np.ndarray, " N"]
    fresh: list[int] = dataclasses.field(default_factory=list)
    changed: list[tuple[int, np.void]] = dataclasses.field(default_factory=list)
    cells: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def changes(self, needed: int) -> Changes:
        return Changes(
            self.rows,
            np.array(self.fresh, np.int32),
            needed,
            np.array([row for row, _ in self.changed], np.int32),
            np.array([was for _, was in self.changed], OCCUPANT),
            np.array([cell for cell, _ in self.cells], np.int64),
            np.array([was for _, was in self.cells], np.uint8),
        )


class PlainIdMap:
    """Changes to occupants of rows, with the index of ids that they need.

    Args:
        state: occupants, changed in place.
    """

    def __init__(self, state: Occupants):
        self._state = state
        live = np.flatnonzero(state.by_row["count"])
        self._row_of = dict(zip(state.by_row["key"][live].tolist(), live.tolist(), strict=True))
        self._salts = {x: salt(state.seed, x) for x in (SKETCH, DEFAULT, DRAW)}

    def translate(self, keys: UInt64[np.ndarray, " N"], now: int) -> Changes:
        """The rows of a batch, after those that it needs have been handed out.

        With too few rows, `Changes.needed` says so, and the caller must restore what changed.

        Args:
            keys: ids.
            now: time.
        """
        by_row, batch = self._state.by_row, _Batch(np.zeros(len(keys), np.int32))
        touched: set[int] = set()
        unknown: dict[int, list[int]] = {}
        for place, key in enumerate(keys.tolist()):
            row = self._row_of.get(key)
            if row is None:
                unknown.setdefault(key, []).append(place)
                continue
            if row not in touched:
                touched.add(row)
                batch.changed.append((row, by_row[row].copy()))
                by_row["last_seen"][row] = now
            by_row["count"][row] = min(int(by_row["count"][row]) + 1, _MOST)
            batch.rows[place] = row
        admitted = []
        for key, places in unknown.items():
            if self._admits(key, len(places), now, batch):
                admitted.append(key)
            else:
                batch.rows[places] = self.default_of(key)
        needed = len(touched) + len(admitted)
        if needed > self._state.capacity:
            return batch.changes(needed)
        lacking = len(admitted) - (self._state.capacity - self._state.live)
        if lacking > 0:
            for row in self._lowest(lacking, touched, now):
                batch.changed.append((row, by_row[row].copy()))
                self._free(row)
        for key in admitted:
            row = self._occupy(key, len(unknown[key]), now, batch)
            batch.rows[unknown[key]] = row
        return batch.changes(needed)

    def find(self, keys: UInt64[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
        """The rows of ids as they are; default rows of ids without one.

        Args:
            keys: ids.
        """
        found = (self._row_of.get(key) for key in keys.tolist())
        pairs = zip(found, keys.tolist(), strict=True)
        rows = [self.default_of(key) if row is None else row for row, key in pairs]
        return np.array(rows, np.int32)

    def remove(self, rows: Int32[np.ndarray, " n"]) -> None:
        """Takes the ids of rows away.

        Args:
            rows: rows that have ids.
        """
        for row in rows.tolist():
            self._free(row)

    def restore(self, rows: Int32[np.ndarray, " E"], before: Shaped[np.ndarray, " E"]) -> None:
        """Takes changes back, the last one first.

        Args:
            rows: rows that changed.
            before: states before.
        """
        by_row = self._state.by_row
        for row, was in zip(rows[::-1].tolist(), before[::-1], strict=True):
            if by_row["count"][row]:
                del self._row_of[int(by_row["key"][row])]
            by_row[row] = was
            if was["count"]:
                self._row_of[int(was["key"])] = row
        self._state.count_rows()

    def default_of(self, key: int) -> int:
        """The row that an id reads while it has none.

        Args:
            key: id.
        """
        return scaled(mix(key ^ self._salts[DEFAULT]), self._state.policy.defaults)

    def _admits(self, key: int, times: int, now: int, batch: _Batch) -> bool:
        """Whether an id gets a row, after its occurrences have been counted."""
        state, policy = self._state, self._state.policy
        if policy.admit_count > 1:
            hashed = mix(key ^ self._salts[SKETCH])
            places = sketch_places(hashed, len(state.sketch) // 64)
            # Only the smallest cells grow (conservative update): counts are less often too high.
            count = min(int(min(state.sketch[places])) + times, 255)
            for place in places:
                if state.sketch[place] < count:
                    batch.cells.append((place, int(state.sketch[place])))
                    state.sketch[place] = count
            state.additions += times
            if count < policy.admit_count:
                return False
        if policy.admit_probability == 1:
            return True
        return draw(mix(key ^ self._salts[DRAW]), now) < policy.admit_probability

    def _lowest(self, lacking: int, touched: set[int], now: int) -> list[int]:
        """Rows that lose their ids: those of the lowest score, ascending by row."""
        by_row, policy = self._state.by_row, self._state.policy
        candidates = np.setdiff1d(np.flatnonzero(by_row["count"]), [*touched])
        counts, last_seen = by_row["count"][candidates], by_row["last_seen"][candidates]
        number = max(lacking, policy.evicted_at_once(len(by_row)))
        return sorted(in_order(policy, candidates, counts, last_seen, now)[:number].tolist())

    def _free(self, row: int) -> None:
        state = self._state
        del self._row_of[int(state.by_row["key"][row])]
        state.by_row[row] = np.zeros((), OCCUPANT)
        state.live -= 1
        state.lowest_free = min(state.lowest_free, row)

    def _occupy(self, key: int, times: int, now: int, batch: _Batch) -> int:
        """The lowest free row, which now belongs to an id."""
        state = self._state
        row = state.lowest_free
        while state.by_row["count"][row]:
            row += 1
        batch.changed.append((row, state.by_row[row].copy()))
        state.by_row[row] = (key, min(times, _MOST), 0, now)
        self._row_of[key] = row
        state.live += 1
        state.lowest_free = row + 1
        batch.fresh.append(row)
        return row
