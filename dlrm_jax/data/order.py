"""The order of the examples in an epoch: shuffled within windows, or altogether."""

import numpy as np
from jaxtyping import Int64

from dlrm_jax.errors import UserError


class ShuffledOrder:
    """A permutation of all rows for each epoch, with random access.

    The rows of an epoch are cut into consecutive windows, and each window is permuted. No row moves
    as far as the length of a window. The first window is shorter by an amount that differs from
    epoch to epoch, so that neighbors aren't always in the same window. The order depends on the
    arguments only. One window's permutation is kept, 4 bytes a row.

    Args:
        examples: rows of an epoch, N.
        window: rows of a window. 0, N and more permute all rows; 1 leaves them in order.
        seed: seed of the permutations, 0 or more.

    Raises:
        UserError: the window or the seed is negative.
    """

    def __init__(self, examples: int, window: int, seed: int):
        if seed < 0:
            raise UserError(f"the seed of the shuffle must be 0 or more, got {seed}.")
        if window < 0:
            raise UserError(
                f"the window of the shuffle must be 0, for all examples, or more, got {window}."
            )
        self._examples = examples
        self._window = window if 0 < window < examples else examples
        self._seed = seed
        self._kept: tuple[tuple[int, ...], np.ndarray] | None = None

    def rows(self, epoch: int, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """The rows at the places [start, stop) of an epoch, both from 0 to N."""
        if self._window == 1:
            return np.arange(start, stop, dtype=np.int64)
        shift = self._shift(epoch)
        rows = [np.empty(0, np.int64)]
        while start < stop:
            number = (start + shift) // self._window
            first = max(number * self._window - shift, 0)
            last = min((number + 1) * self._window - shift, self._examples)
            end = min(stop, last)
            places = self._permutation(epoch, number, last - first)[start - first : end - first]
            rows.append(places + np.int64(first))
            start = end
        return np.concatenate(rows)

    def _shift(self, epoch: int) -> int:
        """The number of rows by which the first window is shorter than the others."""
        if self._window == self._examples:
            return 0
        return int(np.random.default_rng([self._seed, epoch]).integers(self._window))

    def _permutation(self, epoch: int, number: int, size: int) -> np.ndarray:
        # The seeds [a, b] and [a, b, 0] are the same to NumPy.
        key = (epoch,) if self._window == self._examples else (epoch, number + 1)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # before the next one is made: they may be large
            # Half the memory where it is enough: full Criteo data has 40 million examples.
            dtype = np.int32 if size <= np.iinfo(np.int32).max else np.int64
            places = np.arange(size, dtype=dtype)
            np.random.default_rng([self._seed, *key]).shuffle(places)
            self._kept = key, places
        return self._kept[1]
