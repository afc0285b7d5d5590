"""The rows of tables in the host's memory, and those that are on their way to it."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from dlrm_jax.embedding.row_swaps import OldRows

_MOST_LEAVING = 8
"""Swaps whose rows may be on their way before the host waits for the first of them: each takes
memory of the devices."""


class _Leaving(NamedTuple):
    """Rows that devices have given back.

    Attributes:
        number: number of the swap.
        rows: numbers of the rows in the whole tables, by table.
        old: their values.
        landed: function to call when they are here.
    """

    number: int
    rows: Mapping[str, Int32[np.ndarray, " n"]]
    old: OldRows
    landed: Callable[[], None]


class HostRows:
    """Whole tables and their optimizer slots by row, in which cached rows are out of date.

    Args:
        arrays: arrays [N, d] or [N] by table, and by ``"table"`` or slot.
        cached: rows in the cache by their place there, by table, after the last swap.
    """

    def __init__(
        self,
        arrays: dict[str, dict[str, np.ndarray]],
        cached: Mapping[str, Int32[np.ndarray, " C"]],
    ):
        self.arrays, self.cached = arrays, cached
        self._leaving: collections.deque[_Leaving] = collections.deque()

    def read(
        self, rows: Mapping[str, Int32[np.ndarray, " n"]], with_slots: bool = True
    ) -> dict[str, dict[str, np.ndarray]]:
        """Copies of rows, by table and name; with the optimizer slots, or without."""
        keys = slice(None) if with_slots else slice(1)
        return {
            name: {key: self.arrays[name][key][own] for key in [*self.arrays[name]][keys]}
            for name, own in rows.items()
        }

    def expect(
        self,
        number: int,
        rows: Mapping[str, Int32[np.ndarray, " n"]],
        old: OldRows,
        landed: Callable[[], None],
    ) -> None:
        """Takes rows that devices send, and those of earlier swaps that are here.

        Args:
            number: number of the swap, larger than that of the one before.
            rows: numbers of the rows in the whole tables, by table.
            old: their values.
            landed: function to call when they have been written.
        """
        self._leaving.append(_Leaving(number, rows, old, landed))
        while self._leaving[0].old.is_ready or len(self._leaving) > _MOST_LEAVING:
            self._land()
            if not self._leaving:
                break

    def land(self, last: int | None = None) -> None:
        """Waits for rows that devices send.

        Args:
            last: number of the last swap to wait for; None for all.
        """
        while self._leaving and (last is None or self._leaving[0].number <= last):
            self._land()

    def _land(self) -> None:
        leaving = self._leaving.popleft()
        for name, arrays in leaving.old.read().items():
            for key, values in arrays.items():
                self.arrays[name][key][leaving.rows[name]] = values
        leaving.landed()
