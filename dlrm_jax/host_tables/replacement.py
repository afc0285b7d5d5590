"""Which rows of a cache make room for others: those of the lowest score of recency and frequency.

A row's score is Σ 2^((t - now) / half_life) over the batches t that read it: LRFU (Lee et al.,
2001, "LRFU: a spectrum of policies that subsumes the least recently used and least frequently used
policies"). A short half-life forgets all but the last read, as LRU does, and an endless one is LFU.
Ids of clicks follow a Zipf law that changes slowly, so that frequency says most: of a cache that
keeps the last rows, half are rows that come once. Scores outlive eviction: a row that comes back
needn't earn its place anew.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32

HALF_LIFE = 4096
"""Batches after which a read counts half."""

_MOST_WEIGHT = 2.0**60  # scores are float32, which ends at 2^128


class Replacement:
    """The scores of all rows of a table, and the cached rows of the lowest ones.

    Args:
        rows: number of rows.
        half_life: batches after which a read counts half.
    """

    def __init__(self, rows: int, half_life: float = HALF_LIFE):
        self._scores = np.zeros(rows, np.float32)
        self._growth = 2.0 ** (1 / half_life)
        self._weight = 1.0  # of a read now: later reads weigh more, so that no score must shrink
        # Some of the cached rows: all whose scores are up to the limit, and of some rows scores
        # that they had before they were read again.
        self._pool = np.zeros(0, np.int32)
        self._pool_scores = np.zeros(0, np.float32)
        self._limit = np.float32(-1)

    def read(self, rows: Int32[np.ndarray, " K"]) -> None:
        """Counts a batch that reads these rows, each once."""
        self._weight *= self._growth
        if self._weight > _MOST_WEIGHT:
            for scores in (self._scores, self._pool_scores):
                scores /= np.float32(_MOST_WEIGHT)
            self._limit /= np.float32(_MOST_WEIGHT)
            self._weight /= _MOST_WEIGHT
        self._scores[rows] += np.float32(self._weight)

    def lowest(
        self, count: int, cached: Int32[np.ndarray, " C"], batch: Int32[np.ndarray, " K"]
    ) -> Int32[np.ndarray, " n"]:
        """The cached rows of the lowest scores, which are no longer cached from now on.

        Args:
            count: number of them, at most C less the rows of the batch that are cached.
            cached: all cached rows.
            batch: rows of the batch, which was counted last. They aren't among the lowest, and are
                cached from now on.
        """
        untouched = self._scores[self._pool] == self._pool_scores
        if np.count_nonzero(untouched) < count:
            self._fill_pool(count, cached, batch)
        else:
            self._pool, self._pool_scores = self._pool[untouched], self._pool_scores[untouched]
        found = np.zeros(0, np.int32)
        if count:
            order = np.argpartition(self._pool_scores, count - 1)
            found, kept = self._pool[order[:count]], order[count:]
            self._pool, self._pool_scores = self._pool[kept], self._pool_scores[kept]
        scores = self._scores[batch]
        low = scores <= self._limit
        self._pool = np.concatenate([self._pool, batch[low]])
        self._pool_scores = np.concatenate([self._pool_scores, scores[low]])
        return found

    def _fill_pool(
        self, count: int, cached: Int32[np.ndarray, " C"], batch: Int32[np.ndarray, " K"]
    ) -> None:
        """Makes the pool anew: a search of the whole cache, which serves many batches."""
        weight = self._scores[batch].copy()
        self._scores[batch] = np.inf
        scores = self._scores[cached]
        self._scores[batch] = weight
        most = np.count_nonzero(np.isfinite(scores))
        size = min(most, max(4 * count, len(cached) // 16))
        order = np.argpartition(scores, size - 1)[:size]
        self._pool, self._pool_scores = cached[order], scores[order]
        self._limit = self._pool_scores.max()
