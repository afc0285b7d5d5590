"""Which rows of a table lie in which rows of its cache, from batch to batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from dlrm_jax.errors import UserError
from dlrm_jax.host_tables.replacement import HALF_LIFE, Replacement

_ON_HOST = -1


class Exchange(NamedTuple):
    """The rows that a batch needs in a cache, and those that make room for them.

    Attributes:
        places: rows of the cache, [n].
        coming: rows of the table that come there.
        going: rows of the table that were there.
        left_in: numbers of the exchanges in which rows that come have left; -1 for rows that have
            come back to the host since, or were never in the cache.
        read: number of different rows that the batch reads.
    """

    places: Int32[np.ndarray, " n"]
    coming: Int32[np.ndarray, " n"]
    going: Int32[np.ndarray, " n"]
    left_in: Int32[np.ndarray, " n"]
    read: int


class CacheMap:
    """The places of a table's rows. It takes 8 bytes a row, and 4 a row of the cache.

    Args:
        name: name of the table, for messages.
        rows: number N of rows of the table.
        cached: rows of the table that lie in the cache, by their place there, [C].
        writes_back: whether rows that leave the cache have changed, and are on their way to the
            host until `back` says that they are there.
        half_life: see `Replacement`.
    """

    def __init__(
        self,
        name: str,
        rows: int,
        cached: Int32[np.ndarray, " C"],
        writes_back: bool = True,
        half_life: float = HALF_LIFE,
    ):
        self.name = name
        self._cached = cached.copy()
        self._writes_back = writes_back
        # At least 0: the place in the cache. -1: on the host. -2 - n: left in exchange n.
        self._places = np.full(rows, _ON_HOST, np.int32)
        self._places[cached] = np.arange(len(cached), dtype=np.int32)
        self._replacement = Replacement(rows, half_life)

    def exchange(self, number: int, ids: Int32[np.ndarray, " I"]) -> Exchange:
        """Makes room for all rows of a batch.

        Args:
            number: number of the exchange, from 0 on.
            ids: rows that the batch reads, each as often as it does.

        Raises:
            UserError: a row is out of range, or there are more than the cache has room for. Then
                nothing has changed.
        """
        rows = np.unique(ids)
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(self._places):
            wrong = rows[0] if rows[0] < 0 else rows[-1]
            raise UserError(
                f"table {self.name}: expected ids from 0 to {len(self._places) - 1:,}, got {wrong}"
            )
        if len(rows) > len(self._cached):
            raise UserError(
                f"table {self.name}: a batch reads {len(rows):,} different rows, and its cache has "
                f"{len(self._cached):,}; give it at least as many, or make the batches of "
                f"training and evaluation smaller"
            )
        self._replacement.read(rows)
        before = self._places[rows]
        missing = before < 0
        coming, states = rows[missing], before[missing]
        going = self._replacement.lowest(len(coming), self._cached, rows)
        places = self._places[going]
        self._places[going] = -2 - number if self._writes_back else _ON_HOST
        self._places[coming] = places
        self._cached[places] = coming
        return Exchange(places, coming, going, np.where(states < -1, -2 - states, -1), len(rows))

    def places(self, ids: Int32[np.ndarray, " I"]) -> Int32[np.ndarray, " I"]:
        """The places of rows that the batch of the last exchange reads."""
        return self._places[ids]

    def back(self, number: int, going: Int32[np.ndarray, " n"]) -> None:
        """Notes that the rows that left in an exchange are on the host again.

        Those that have come back to the cache since stay there.
        """
        self._places[going[self._places[going] == -2 - number]] = _ON_HOST
