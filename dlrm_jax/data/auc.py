"""The area under the ROC curve, of all examples and by group."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Integer, Shaped


def auc(scores: Float[np.ndarray, " N"], labels: Shaped[np.ndarray, " N"]) -> float:
    """The probability that a positive example scores above a negative one; ties count half.

    It is exact (the Mann-Whitney U statistic), and NaN if one class is missing. Labels are 0 or 1,
    or taken as 1 above 1/2.
    """
    negative, positive = np.sort(scores[labels <= 0.5]), np.sort(scores[labels > 0.5])
    if not len(negative) or not len(positive):
        return math.nan
    below = np.searchsorted(negative, positive, side="left").sum(dtype=np.int64)
    up_to = np.searchsorted(negative, positive, side="right").sum(dtype=np.int64)
    return float(below + up_to) / (2.0 * len(negative) * len(positive))


def grouped_auc(
    scores: Float[np.ndarray, " N"],
    labels: Shaped[np.ndarray, " N"],
    groups: Integer[np.ndarray, " N"],
) -> float:
    """The mean AUC of groups, weighted by their sizes (GAUC, arXiv 1706.06978, section 6.2).

    Args:
        scores: scores, [N].
        labels: 0 or 1, [N].
        groups: number of each example's group, [N], such as its user.

    Returns:
        NaN if no group has both classes; groups of one class don't count.
    """
    order = np.lexsort((scores, groups))
    scores, groups, positive = scores[order], groups[order], labels[order] > 0.5
    starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    tied = np.flatnonzero(
        (np.diff(groups, prepend=groups[:1] - 1) != 0) | (np.diff(scores, prepend=np.nan) != 0)
    )
    # The rank of tied examples is the mean of their places, from 1.
    lengths = np.diff(tied, append=len(scores))
    ranks = np.repeat(tied + (lengths + 1) / 2, lengths)
    sizes = np.diff(starts, append=len(scores))
    ranks -= np.repeat(starts, sizes)
    positives = np.add.reduceat(positive, starts, dtype=np.int64) if len(starts) else sizes
    negatives = sizes - positives
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return math.nan
    above = np.add.reduceat(np.where(positive, ranks, 0), starts) - positives * (positives + 1) / 2
    each = above[both] / (positives[both] * negatives[both])
    return float(np.average(each, weights=sizes[both]))
