"""The ids that rows of a table belong to, as plain arrays by row, and what changes in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt64

from dlrm_jax.embedding.integer_arrays import vector


class KeyChanges(NamedTuple):
    """Rows whose id is another one than before.

    Attributes:
        rows: numbers of the rows, ascending, [n].
        keys: id of each row now, [n]; 0 where there is none.
        live: whether a row belongs to an id now, [n].
    """

    rows: Int32[np.ndarray, " n"]
    keys: UInt64[np.ndarray, " n"]
    live: Bool[np.ndarray, " n"]


class Keys(NamedTuple):
    """The ids of all rows.

    Attributes:
        keys: id of each row, [rows]; 0 where there is none.
        live: whether a row belongs to an id, [rows].
    """

    keys: UInt64[np.ndarray, " rows"]
    live: Bool[np.ndarray, " rows"]

    def changes(self, before: Keys) -> KeyChanges:
        """What has changed since.

        Args:
            before: ids of as many rows.
        """
        rows = np.flatnonzero((self.keys != before.keys) | (self.live != before.live))
        return KeyChanges(rows.astype(np.int32), self.keys[rows], self.live[rows])

    def apply(self, changes: KeyChanges) -> None:
        """Makes changes, in place.

        Args:
            changes: changes.
        """
        self.keys[changes.rows], self.live[changes.rows] = changes.keys, changes.live


def as_keys(ids: Any, name: str) -> UInt64[np.ndarray, " N"]:
    """Ids as unsigned integers of 64 bits, by their bits.

    Args:
        ids: ids, [N].
        name: name of the array, for messages.

    Raises:
        UserError: see `vector`.
    """
    array = vector(name, ids)
    if array.dtype == np.uint64:
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array, np.int64).view(np.uint64)
