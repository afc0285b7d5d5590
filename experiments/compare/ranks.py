"""Ranks of models by what their seeds give, with ties where chance explains the difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtr

_LEVEL = 0.05


def rank_ranges(values: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """The best and the worst rank of each contender that its seeds leave open.

    A contender is behind those that are better by Welch's test (two-sided, at 5 %), and before
    those that are worse; it ties with all others. The test knows the spread of seeds alone, not
    that of other data, and one seed tells nothing.

    Args:
        values: values of each contender, one for each seed; more is better, NaN is the worst.
    """
    return [
        (
            1 + sum(_is_better(other, own) for other in values),
            len(values) - sum(_is_better(own, other) for other in values),
        )
        for own in values
    ]


def shown(ranks: tuple[int, int]) -> str:
    """A range of ranks as text: 3, or 2–5."""
    best, worst = ranks
    return str(best) if best == worst else f"{best}\u2013{worst}"


def _is_better(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one mean is above another by more than chance explains."""
    if any(map(math.isnan, one)):
        return False
    if any(map(math.isnan, other)):
        return True
    difference = statistics.mean(one) - statistics.mean(other)
    if difference <= 0 or min(len(one), len(other)) < 2:
        return False
    parts = [statistics.variance(x) / len(x) for x in (one, other)]
    if not sum(parts):
        return True
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(x) - 1) for part, x in zip(parts, (one, other), strict=True)
    )
    return 2 * stdtr(freedom, -difference / math.sqrt(sum(parts))) < _LEVEL
