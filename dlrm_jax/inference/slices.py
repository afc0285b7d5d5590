"""Where a model is good and where not: by prediction, by value of a feature, by day."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.inference.scored_rows import ScoredRows

_Z = 1.96  # two-sided 95 % of a normal distribution


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Rows with predictions of about the same size.

    Attributes:
        examples: number of rows.
        weight: sum of their weights.
        prediction: mean prediction.
        label_rate: mean label.
        low: lower end of the label rate's 95 % interval by Wilson.
        high: its upper end.
    """

    examples: int
    weight: float
    prediction: float
    label_rate: float
    low: float
    high: float


def reliability(rows: ScoredRows, buckets: int) -> list[Bucket]:
    """Mean label by mean prediction, in buckets of equal counts, from the lowest predictions up.

    Means are weighted; rows without a weight are left out, so there may be no bucket.
    """
    rows = rows[rows.weights > 0]
    if not len(rows):
        return []
    probabilities, labels = rows.probabilities, rows.labels
    order = np.argsort(probabilities, kind="stable")
    found = []
    for members in np.array_split(order, min(buckets, len(rows))):
        weights = rows.weights[members].astype(np.float64)
        rate = float(np.average(labels[members], weights=weights))
        # The number of unweighted rows whose mean would be as certain (Kish, 1965).
        low, high = _wilson(rate, float(weights.sum() ** 2 / np.sum(weights**2)))
        mean = float(np.average(probabilities[members], weights=weights))
        found.append(Bucket(len(members), float(weights.sum()), mean, rate, low, high))
    return found


def calibration_error(buckets: Sequence[Bucket]) -> float:
    """The mean distance between label rate and prediction over the rows of all buckets (ECE).

    The mean is weighted; NaN without a bucket.
    """
    if not buckets:
        return float("nan")
    weights = [bucket.weight for bucket in buckets]
    distances = [abs(bucket.label_rate - bucket.prediction) for bucket in buckets]
    return float(np.average(distances, weights=weights))


def _wilson(rate: float, count: float) -> tuple[float, float]:
    """The interval of a rate, which lies in [0, 1] for few rows, too (Wilson, 1927)."""
    share = _Z**2 / count
    center = (rate + share / 2) / (1 + share)
    half = np.sqrt(rate * (1 - rate) * share + share**2 / 4) / (1 + share)
    return float(max(0, center - half)), float(min(1, center + half))


@dataclasses.dataclass(frozen=True)
class Slice:
    """Rows that have something in common.

    Attributes:
        feature: name of the feature.
        value: id of a categorical feature, which is in the bags of all these rows; or lower and
            upper end of a dense feature, both included.
        metrics: metrics of the rows, see `ScoredRows.metrics`.
    """

    feature: str
    value: int | tuple[float, float]
    metrics: dict[str, float | int]


def by_value(
    rows: ScoredRows, names: Sequence[str], bag_lengths: Sequence[int], most: int
) -> Iterator[Slice]:
    """The values of each categorical feature that most rows have, so many of each.

    A row with several ids counts for each of them.
    """
    ids = np.asarray(rows.examples.ids)
    starts = np.cumsum([0, *bag_lengths])
    for name, start, stop in zip(names, starts, starts[1:], strict=False):
        bags = ids[:, start:stop]
        found, counts = np.unique(bags[bags != ABSENT], return_counts=True)
        # An id may be in a bag twice, so this isn't the number of rows, but chooses as well.
        for value in found[np.argsort(-counts, kind="stable")[:most]].tolist():
            yield Slice(name, value, rows.metrics((bags == value).any(axis=1)))


def by_range(rows: ScoredRows, names: Sequence[str], buckets: int) -> Iterator[Slice]:
    """Ranges of each dense feature with about equally many rows; equal values lie in one range."""
    for number, name in enumerate(names):
        values = rows.examples.dense[:, number]
        edges = _edges(values.astype(np.float64), buckets)
        bucket = np.searchsorted(edges, values, side="left")
        for each in np.unique(bucket).tolist():
            chosen = bucket == each
            ends = float(values[chosen].min()), float(values[chosen].max())
            yield Slice(name, ends, rows.metrics(chosen))


def _edges(values: Float64[np.ndarray, " N"], buckets: int) -> Float64[np.ndarray, " E"]:
    """The upper ends of all buckets but the last one."""
    shares = np.arange(1, buckets) / buckets
    return np.unique(np.quantile(values, shares, method="inverted_cdf"))


def by_day(rows: ScoredRows) -> dict[int, dict[str, float | int]]:
    """The metrics of each day's rows, by its number."""
    return {day: rows.metrics(rows.days == day) for day in np.unique(rows.days).tolist()}
