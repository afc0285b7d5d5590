"""The changes of a map from ids to rows by the native kernels: those of `plain_id_map`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Shaped, UInt64

from dlrm_jax.dynamic_ids.id_hashes import DEFAULT, DRAW, SKETCH, SLOT, salt
from dlrm_jax.dynamic_ids.occupants import OCCUPANT, Changes, Occupants
from dlrm_jax.dynamic_ids.policy import EVICTIONS
from dlrm_jax.native import id_map as native

_CHANGE_BYTES = OCCUPANT.itemsize + 4
_SLOTS_PER_ROW = 2  # half of the index is empty, so that searches are short


class NativeIdMap:
    """Changes to occupants of rows, with the index of ids that they need: 8 bytes a row.

    Args:
        state: occupants, changed in place; its arrays must stay where they are.
    """

    def __init__(self, state: Occupants):
        self._state = state
        rows, policy = len(state.by_row), state.policy
        self._index = np.empty(_SLOTS_PER_ROW * rows, np.int32)
        self._map = np.zeros((), native.MAP)
        for name, value in {
            "rows": state.by_row.ctypes.data,
            "index": self._index.ctypes.data,
            "sketch": state.sketch.ctypes.data,
            "row_count": rows,
            "slots": len(self._index),
            "blocks": len(state.sketch) // 64,
            "defaults": policy.defaults,
            "admit_count": policy.admit_count,
            "eviction": EVICTIONS.index(policy.evict),
            "evicted_at_once": policy.evicted_at_once(rows),
            "admit_probability": policy.admit_probability,
            "slot_salt": salt(state.seed, SLOT),
            "sketch_salt": salt(state.seed, SKETCH),
            "default_salt": salt(state.seed, DEFAULT),
            "draw_salt": salt(state.seed, DRAW),
        }.items():
            self._map[name] = value
        self._scratch = _scratch(0, state)
        native.index(self._map)

    @staticmethod
    def nbytes(state: Occupants) -> int:
        """Bytes of the index and of the changes of a large eviction, besides the state.

        Args:
            state: occupants.
        """
        rows = len(state.by_row)
        return 4 * _SLOTS_PER_ROW * rows + _CHANGE_BYTES * state.policy.evicted_at_once(rows)

    def find(self, keys: UInt64[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
        """The rows of ids as they are; default rows of ids without one.

        Args:
            keys: ids.
        """
        return native.find(self._map, keys)

    def remove(self, rows: Int32[np.ndarray, " n"]) -> None:
        """Takes the ids of rows away.

        Args:
            rows: rows that have ids.
        """
        self._push()
        native.free(self._map, rows)
        self._pull()

    def restore(self, rows: Int32[np.ndarray, " E"], before: Shaped[np.ndarray, " E"]) -> None:
        """Takes changes back, the last one first.

        Args:
            rows: rows that changed.
            before: states before.
        """
        native.restore(self._map, rows, before)
        self._state.count_rows()

    def _room(self, count: int) -> dict[str, np.ndarray]:
        """Arrays for what a batch may change; kept, as fresh memory would have to be zeroed."""
        if len(self._scratch["fresh"]) < count:
            self._scratch = _scratch(count, self._state)
        return self._scratch

    def _push(self) -> None:
        for name in ("live", "lowest_free", "additions"):
            self._map[name] = getattr(self._state, name)

    def _pull(self) -> None:
        for name in ("live", "lowest_free", "additions"):
            setattr(self._state, name, int(self._map[name]))


def _scratch(count: int, state: Occupants) -> dict[str, np.ndarray]:
    rows = 2 * count + state.policy.evicted_at_once(len(state.by_row))
    cells = 0 if state.policy.admit_count == 1 else 4 * count
    return {
        "fresh": np.empty(count, np.int32),
        "changed": np.empty(rows, np.int32),
        "before": np.empty(rows, OCCUPANT),
        "cells": np.empty(cells, np.int64),
        "cells_before": np.empty(cells, np.uint8),
    }


class _Batch:
    """A batch of one map, as a request: results that are returned, and those that are copied."""

    def __init__(self, of: NativeIdMap, request: np.void, keys: UInt64[np.ndarray, " N"], now: int):
        self._of, self._request, self._keys = of, request, keys
        self._rows = np.empty(len(keys), np.int32)
        for name, array in {"keys": keys, "rows": self._rows, **of._room(len(keys))}.items():
            request[name] = array.ctypes.data
        request["map"], request["count"], request["now"] = of._map.ctypes.data, len(keys), now

    def changes(self) -> Changes:
        def first(name: str, count: str) -> np.ndarray:
            return self._of._scratch[name][: self._request[count]].copy()

        return Changes(
            self._rows,
            first("fresh", "fresh_count"),
            int(self._request["needed"]),
            first("changed", "changed_count"),
            first("before", "changed_count"),
            first("cells", "cell_count"),
            first("cells_before", "cell_count"),
        )


def translate(
    maps: Sequence[NativeIdMap],
    keys: Sequence[UInt64[np.ndarray, " _"]],
    now: int,
    threads: int | None = None,
) -> list[Changes]:
    """The rows of a batch of each map; see `PlainIdMap.translate`.

    Args:
        maps: maps, each once.
        keys: ids of each map, contiguous.
        now: time.
        threads: most threads to use; None for one on each processor.
    """
    requests = np.zeros(len(maps), native.REQUEST)
    batches = [_Batch(*x, now) for x in zip(maps, requests, keys, strict=True)]
    for of in maps:
        of._push()
    native.translate(requests, threads)
    for of in maps:
        of._pull()
    return [batch.changes() for batch in batches]
