"""Items that users haven't rated."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from dlrm_jax.errors import UserError


class Negatives:
    """Draws items at random for users, but for those that they are known to have rated.

    Args:
        users: index of each rating's user.
        items: index of what was rated.
        count: of all items.
    """

    def __init__(self, users: Int64[np.ndarray, " n"], items: Int64[np.ndarray, " n"], count: int):
        self._count = count
        self._rated = np.unique(users * count + items)
        self._left = count - np.bincount(self._rated // count)

    def draw(
        self, users: Int64[np.ndarray, " N"], size: int, rng: np.random.Generator
    ) -> Int64[np.ndarray, "N size"]:
        """Different items for each row, any such set being as likely as any other.

        Args:
            users: of the rows, such as have rated.
            size: items of a row.
            rng: draws them.

        Raises:
            UserError: a user has rated so many items that fewer are left.
        """
        least = int(self._left[users].min(initial=self._count))
        if least < size:
            raise UserError(
                f"{size} items that a user hasn't rated are wanted, but of {self._count} items "
                f"one has only {least} left; take fewer"
            )
        drawn = np.empty((len(users), size), np.int64)
        rows, places = np.divmod(np.arange(drawn.size), size)
        while len(rows):
            drawn[rows, places] = rng.integers(0, self._count, len(rows))
            touched = np.unique(rows)
            again = self._is_rated(users[touched, None], drawn[touched]) | _repeated(drawn[touched])
            found, places = np.nonzero(again)
            rows = touched[found]
        return drawn

    def _is_rated(
        self, users: Int64[np.ndarray, "n 1"], items: Int64[np.ndarray, "n size"]
    ) -> Bool[np.ndarray, "n size"]:
        keys = users * self._count + items
        places = np.searchsorted(self._rated, keys)
        return self._rated[np.minimum(places, len(self._rated) - 1)] == keys


def _repeated(items: Int64[np.ndarray, "n size"]) -> Bool[np.ndarray, "n size"]:
    """Whether an item comes in an earlier place of its row, too."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    repeated = np.zeros(items.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return repeated
