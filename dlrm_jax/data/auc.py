"""The area under the ROC curve."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Shaped


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
