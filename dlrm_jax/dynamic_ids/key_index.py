"""Looks up the rows of ids without the rules by which they come and go: what serving needs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt64

from dlrm_jax.dynamic_ids.keys import KeyChanges, Keys
from dlrm_jax.dynamic_ids.native_id_map import NativeIdMap
from dlrm_jax.dynamic_ids.occupants import OCCUPANT, Occupants
from dlrm_jax.dynamic_ids.plain_id_map import PlainIdMap
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.native import id_map as native


class KeyIndex:
    """The rows of ids as an `IdMap` would find them: 32 bytes a row with native kernels.

    Several threads may call `find` at a time, none while `apply` is called.

    Args:
        keys: ids of the rows.
        defaults: number of rows, from 0 on, that ids without one read.
        seed: seed of the map that gave the rows.

    Raises:
        UserError: two rows have the same id, a default or free row has one, or there is no row
            besides the defaults.
    """

    def __init__(self, keys: Keys, defaults: int, seed: int):
        arrays = {
            "keys": keys.keys,
            "counts": keys.live.astype(np.uint32),
            "last_seen": np.zeros(len(keys.keys), np.int64),
            "numbers": np.array([0, 0, 0, seed], np.int64),
        }
        self._state = Occupants.from_arrays(DynamicIds(defaults=defaults), arrays)
        self._engine = (NativeIdMap if native.available() else PlainIdMap)(self._state)

    def find(self, keys: UInt64[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
        """The rows of ids; that of an id without one is a default, by a hash of the id.

        Args:
            keys: ids, contiguous.
        """
        return self._engine.find(keys)

    @property
    def keys(self) -> Keys:
        """Copies of the ids of the rows."""
        return self._state.keys()

    @property
    def live_keys(self) -> UInt64[np.ndarray, " n"]:
        """The ids that have a row, in the order of the rows."""
        by_row = self._state.by_row
        return by_row["key"][by_row["count"] > 0]

    def in_other_rows(self, changes: KeyChanges) -> UInt64[np.ndarray, " n"]:
        """The ids of changes that have rows which the changes leave to them: two after `apply`.

        Args:
            changes: changes, in which each id has one row.
        """
        keys = changes.keys[changes.live]
        rows = self.find(keys)
        defaults = self._state.policy.defaults  # these are of ids that have no row yet
        return keys[(rows >= defaults) & ~np.isin(rows, changes.rows)]

    def apply(self, changes: KeyChanges) -> None:
        """Gives rows other ids, or none; the same changes may be made again.

        Args:
            changes: changes; no id may have two rows after them.
        """
        # An id may go from one row to another: all rows are freed before one is taken.
        self._engine.restore(changes.rows, np.zeros(len(changes.rows), OCCUPANT))
        after = np.zeros(len(changes.rows), OCCUPANT)
        after["key"], after["count"] = changes.keys, changes.live
        self._engine.restore(changes.rows, after)
