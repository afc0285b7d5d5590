"""The order of the examples in an epoch that keeps the examples of a group together."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, Int64

from dlrm_jax.data.order import ShuffledOrder


class GroupedOrder:
    """A permutation of the groups of all rows for each epoch, with random access.

    The rows of a group follow one another in the order of the log. The groups are shuffled as
    `ShuffledOrder` shuffles rows; before that they are in the order of their first rows. The order
    depends on the arguments only. It takes 8 bytes a row, and 32 a group.

    Args:
        codes: code of each row's group, [N]; a row with a negative one is a group by itself.
        window: rows that are shuffled together, as for `ShuffledOrder`; it counts as so many groups
            of the mean size.
        seed: seed of the permutations, 0 or more.

    Raises:
        UserError: the window or the seed is negative.
    """

    def __init__(self, codes: Int64[np.ndarray, " N"], window: int, seed: int):
        rows = np.arange(len(codes), dtype=np.int64)
        # All different and below -1, so that they meet no code and not each other.
        codes = np.where(codes < 0, -2 - rows, codes)
        _, first, numbers = np.unique(codes, return_index=True, return_inverse=True)
        place = np.empty(len(first), np.int64)
        place[np.argsort(first)] = np.arange(len(first))
        self._rows = np.argsort(place[numbers], kind="stable")
        self._sizes = np.bincount(place[numbers], minlength=len(first))
        self._starts = np.cumsum(self._sizes) - self._sizes
        if 0 < window < len(codes):
            window = max(1, round(window * len(first) / len(codes)))
        elif window > 0:
            window = 0  # all of them
        self._order = ShuffledOrder(len(first), window, seed)
        self._kept: tuple[int, np.ndarray, np.ndarray] | None = None

    def rows(self, epoch: int, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """The rows at the places [start, stop) of an epoch, both from 0 to N."""
        groups, ends = self._epoch(epoch)
        place = np.searchsorted(ends, np.arange(start, stop), side="right")
        within = np.arange(start, stop) - (ends - self._sizes[groups])[place]
        return self._rows[self._starts[groups[place]] + within]

    def numbers(self, epoch: int, origin: int, start: int, stop: int) -> Int32[np.ndarray, " n"]:
        """The groups at these places, numbered from 0 for the group at the place ``origin``."""
        _, ends = self._epoch(epoch)
        first = np.searchsorted(ends, origin, side="right")
        found = np.searchsorted(ends, np.arange(start, stop), side="right")
        return (found - first).astype(np.int32)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The groups in the order of an epoch, and the place behind each."""
        if self._kept is None or self._kept[0] != epoch:
            self._kept = None  # before the next one is made: they may be large
            groups = self._order.rows(epoch, 0, len(self._sizes))
            self._kept = epoch, groups, np.cumsum(self._sizes[groups])
        return self._kept[1:]
