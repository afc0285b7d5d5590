"""Samples items that users haven't rated."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from dlrm_jax.errors import UserError


class Negatives:
    """Draws some of ``count`` items at random for users, except those that the user has rated."""

    def __init__(self, users: Int64[np.ndarray, " n"], items: Int64[np.ndarray, " n"], count: int):
        self._count = count
        self._rated = np.unique(users * count + items)
        self._left = count - np.bincount(self._rated // count)

    def draw(
        self, users: Int64[np.ndarray, " N"], size: int, rng: np.random.Generator
    ) -> Int64[np.ndarray, "N size"]:
        """Draws distinct items for each user, uniformly among all such sets.

        Raises:
            UserError: a user has rated so many items that fewer are left.
        """
        least = int(self._left[users].min(initial=self._count))
        if least < size:
            raise UserError(
                f"expected {size} items that a user hasn't rated, but of {self._count} items "
                f"one user has only {least} left; draw fewer"
            )
        drawn = np.empty((len(users), size), np.int64)
        rows, places = np.divmod(np.arange(drawn.size), size)
        while len(rows):
            drawn[rows, places] = rng.integers(0, self._count, len(rows))
            touched = np.unique(rows)
            again = self._is_rated(users[touched, None], drawn[touched]) | _repeated(drawn[touched])
            drawn_again, places = np.nonzero(again)
            rows = touched[drawn_again]
        return drawn

    def _is_rated(
        self, users: Int64[np.ndarray, "n 1"], items: Int64[np.ndarray, "n size"]
    ) -> Bool[np.ndarray, "n size"]:
        keys = users * self._count + items
        places = np.searchsorted(self._rated, keys)
        return self._rated[np.minimum(places, len(self._rated) - 1)] == keys


def _repeated(items: Int64[np.ndarray, "n size"]) -> Bool[np.ndarray, "n size"]:
    """The mask of items that also occur earlier in their row."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    repeated = np.zeros(items.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return repeated
