"""The items that users have liked before."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, Int64

from dlrm_jax.data.arrays import ABSENT


class History:
    """The items that users are known to have liked, by time.

    It is made of training examples alone: a history never contains the label of a validation or
    test example. Times are in seconds since 1970. The length is that of a bag, L.
    """

    def __init__(
        self,
        users: Int64[np.ndarray, " n"],
        times: Int64[np.ndarray, " n"],
        items: Int32[np.ndarray, " n"],
        length: int,
    ):
        keys = _key(users, times)
        order = np.argsort(keys, kind="stable")
        self._keys, self._items, self._length = keys[order], items[order], length

    def before(
        self, users: Int64[np.ndarray, " N"], times: Int64[np.ndarray, " N"]
    ) -> Int32[np.ndarray, "N L"]:
        """The last L items that each user liked before a time, latest first; then `ABSENT`.

        Likes at that very time aren't included.
        """
        first = np.searchsorted(self._keys, _key(users, np.zeros_like(times)))
        stop = np.searchsorted(self._keys, _key(users, times))
        bags = np.full((len(users), self._length), ABSENT, np.int32)
        for place in range(self._length):  # one array at a time: there may be millions of rows
            with_item = np.flatnonzero(stop - 1 - place >= first)
            bags[with_item, place] = self._items[stop[with_item] - 1 - place]
        return bags


def _key(users: Int64[np.ndarray, " N"], times: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    return users << 32 | times
