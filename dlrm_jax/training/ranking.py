"""Metrics of the rank that a model gives to the item a user has chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Int64

Weights = Float[np.ndarray, " U"] | None
"""Weights of users; None if all count alike."""


def places(
    scores: Float[np.ndarray, "U C"], chosen: Int[np.ndarray, " U"]
) -> Int64[np.ndarray, " U"]:
    """The number of candidates of each user before the chosen one, ties included.

    Args:
        scores: scores of C candidates of each user, [U, C].
        chosen: column of the chosen candidate of each user, [U].
    """
    own = np.take_along_axis(scores, chosen[:, None], axis=1)
    # Not "scores >= own": scores that aren't numbers must not look like a perfect ranking.
    return np.count_nonzero(~(scores < own), axis=1) - 1


def hit_ratio(places: Int[np.ndarray, " U"], k: int, weights: Weights = None) -> float:
    """The share of users whose chosen candidate is among the first k, also called recall at k."""
    return _mean(places < k, weights)


def ndcg(places: Int[np.ndarray, " U"], k: int, weights: Weights = None) -> float:
    """Normalized discounted cumulative gain at k where each user has one chosen candidate.

    It gains 1 / log2(2 + its place) if it is among the first k, else nothing; the best gain is 1
    (Järvelin and Kekäläinen, 2002, "Cumulated gain-based evaluation of IR techniques").
    """
    gains = np.where(places < k, 1 / np.log2(2 + places), 0)
    return _mean(gains, weights)


def mean_reciprocal_rank(places: Int[np.ndarray, " U"], weights: Weights = None) -> float:
    """The mean of 1 / (1 + place) of the chosen candidates, however far behind they are."""
    return _mean(1 / (1 + places), weights)


def _mean(values: np.ndarray, weights: Weights) -> float:
    """The weighted mean; NaN if no user has a weight."""
    if weights is not None and not weights.any():
        return float("nan")
    return float(np.average(values, weights=weights))


def ranking_metrics(
    scores: Float[np.ndarray, "U C"], ks: Sequence[int] = (10,)
) -> dict[str, float]:
    """``hr@k`` and ``ndcg@k`` for each k.

    Args:
        scores: scores of C candidates of each user, [U, C]; the chosen one is the first.
        ks: numbers of first candidates that count as found.
    """
    before = places(scores, np.zeros(len(scores), np.int64))
    return {f"hr@{k}": hit_ratio(before, k) for k in ks} | {
        f"ndcg@{k}": ndcg(before, k) for k in ks
    }
