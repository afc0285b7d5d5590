"""Calibration in parts: predictions against labels, by bucket of prediction or by a value."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped

_MOST_ROWS = 1000
_FOR_WORST = 100  # examples of a part


@dataclasses.dataclass(frozen=True)
class Parts:
    """Parts of a set of examples, those without weight left out.

    Attributes:
        examples: number of examples of each part, [P].
        weight: sum of their weights, [P].
        prediction: mean prediction, [P].
        label: mean label, [P].
        of: bounds of the parts, by name, [P] each: ``code`` of a value, or ``low`` and ``high``.
    """

    examples: Int64[np.ndarray, " P"]
    weight: Float64[np.ndarray, " P"]
    prediction: Float64[np.ndarray, " P"]
    label: Float64[np.ndarray, " P"]
    of: dict[str, Shaped[np.ndarray, " P"]]

    def worst_and_mean(self) -> tuple[float, float]:
        """The largest |mean prediction - mean label| of a part, and its mean over the examples.

        The mean is the expected calibration error (Guo et al., 2017, arXiv 1706.04599). Parts of
        less than 100 examples don't count for the largest; it is NaN if there are no others.
        """
        errors, large = np.abs(self.prediction - self.label), self.examples >= _FOR_WORST
        worst = float(errors[large].max()) if large.any() else float("nan")
        total = self.weight.sum()
        return worst, float((self.weight * errors).sum() / total) if total else float("nan")

    def table(self) -> list[dict[str, Any]]:
        """The parts as JSON; of values, the 1,000 of most weight."""
        rows = np.arange(len(self.weight))
        if "code" in self.of:
            rows = np.argsort(-self.weight, kind="stable")[:_MOST_ROWS]
        names = ("examples", "weight", "prediction", "label")
        columns = self.of | {name: getattr(self, name) for name in names}
        listed = [column[rows].tolist() for column in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*listed, strict=True)]


def by_bucket(
    logits: Float64[np.ndarray, " N"],
    labels: Float64[np.ndarray, " N"],
    weights: Float64[np.ndarray, " N"],
    buckets: int,
) -> Parts:
    """Parts of equal weight, by prediction, ascending; equal predictions are in one part.

    Clicks are rare, so that most predictions lie in a small part of [0, 1]: parts of equal width
    would be empty or crowded.

    Args:
        logits: logits of the predictions.
        labels: labels.
        weights: weights of the examples.
        buckets: number of parts, some of which may be missing where many predictions are equal.
    """
    order = np.argsort(logits, kind="stable")
    order = order[weights[order] > 0]
    logits, labels, weights = logits[order], labels[order], weights[order]
    starts = np.flatnonzero(np.diff(logits, prepend=np.nan) != 0)
    before = (np.cumsum(weights) - weights)[starts]
    # The part of the first of equal predictions, and so of all of them.
    part = np.minimum(before * buckets // max(weights.sum(), 1e-300), buckets - 1)
    codes = np.repeat(part.astype(np.int64), np.diff(starts, append=len(logits)))
    probabilities = _sigmoid(logits)
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    last = np.append(first[1:], len(codes)) - 1
    edges = {"low": probabilities[first], "high": probabilities[last[: len(first)]]}
    return _parts(probabilities, labels, weights, codes, edges)


def by_value(
    logits: Float64[np.ndarray, " N"],
    labels: Float64[np.ndarray, " N"],
    weights: Float64[np.ndarray, " N"],
    codes: Int64[np.ndarray, " N"],
) -> Parts:
    """A part for each value of a column.

    Args:
        logits: logits of the predictions.
        labels: labels.
        weights: weights of the examples.
        codes: code of each example's value; a negative one is none.
    """
    known = (codes >= 0) & (weights > 0)
    values = {"code": np.unique(codes[known])}
    return _parts(_sigmoid(logits)[known], labels[known], weights[known], codes[known], values)


def _parts(
    probabilities: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    codes: np.ndarray,
    of: dict[str, np.ndarray],
) -> Parts:
    """The parts of examples with a weight each, by ascending code."""
    found, numbers = np.unique(codes, return_inverse=True)
    sums = [
        np.bincount(numbers, x, len(found)).astype(np.float64)  # of nothing, it counts in integers
        for x in (weights, weights * probabilities, weights * labels)
    ]
    examples = np.bincount(numbers, minlength=len(found)).astype(np.int64)
    return Parts(examples, sums[0], sums[1] / sums[0], sums[2] / sums[0], of)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))
