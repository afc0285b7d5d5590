"""The area under the ROC curve, of all examples and by group; examples may have weights."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Integer, Shaped


def auc(
    scores: Float[np.ndarray, " N"],
    labels: Shaped[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"] | None = None,
) -> float:
    """The probability that a positive example scores above a negative one; ties count half.

    It is exact (the Mann-Whitney U statistic), and NaN if one class is missing. Labels are 0 or 1,
    or taken as 1 above 1/2. With weights, a pair counts as the product of both.
    """
    positive = labels > 0.5
    if weights is not None:
        (above,), (pairs,) = _pairs(scores, positive, weights, np.zeros(len(scores), np.int64), 1)
        return float(above / pairs) if pairs else math.nan
    low, high = np.sort(scores[~positive]), np.sort(scores[positive])
    if not len(low) or not len(high):
        return math.nan
    below = np.searchsorted(low, high, side="left").sum(dtype=np.int64)
    up_to = np.searchsorted(low, high, side="right").sum(dtype=np.int64)
    return float(below + up_to) / (2.0 * len(low) * len(high))


def grouped_auc(
    scores: Float[np.ndarray, " N"],
    labels: Shaped[np.ndarray, " N"],
    groups: Integer[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"] | None = None,
) -> float:
    """The mean AUC of groups, weighted by their sizes (GAUC, arXiv 1706.06978, section 6.2).

    Args:
        scores: scores, [N].
        labels: 0 or 1, [N].
        groups: number of each example's group, [N], such as its user.
        weights: weights of the examples, [N]; None if all are 1. The size of a group is the sum of
            its weights.

    Returns:
        NaN if no group has both classes; groups of one class don't count.
    """
    sizes = np.ones(len(scores)) if weights is None else weights.astype(np.float64)
    names, numbers = np.unique(groups, return_inverse=True)
    above, pairs = _pairs(scores, labels > 0.5, sizes, numbers, len(names))
    both = pairs > 0
    if not both.any():
        return math.nan
    of_groups = np.bincount(numbers, sizes, len(names))[both]
    return float(np.average(above[both] / pairs[both], weights=of_groups))


def _pairs(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, groups: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of each group's pairs, of groups 0 to number - 1: those in order, and all of them.

    A tie is in order by half.
    """
    counts = weights > 0
    scores, positive, groups = scores[counts], positive[counts], groups[counts]
    order = np.lexsort((scores, groups))
    scores, groups, weights = scores[order], groups[order], weights[counts][order]
    high = np.where(positive[order], weights.astype(np.float64), 0)
    low = np.where(positive[order], 0, weights.astype(np.float64))
    lows, highs = (np.bincount(groups, x, number) for x in (low, high))
    changes = np.diff(scores, prepend=np.nan) != 0
    changes |= np.diff(groups, prepend=-1) != 0
    starts = np.flatnonzero(changes)
    if not len(starts):
        return np.zeros(number), np.zeros(number)
    # Of each run of ties: the negative weight before it in its group, and half of its own.
    tied_low, tied_high = (np.add.reduceat(x, starts) for x in (low, high))
    of_run = groups[starts]
    before = np.cumsum(tied_low) - tied_low - (np.cumsum(lows) - lows)[of_run]
    return np.bincount(of_run, tied_high * (before + tied_low / 2), number), lows * highs
