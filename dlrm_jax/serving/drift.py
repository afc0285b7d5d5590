"""Drift: whether predictions are distributed as they were on the split that a model was tested on.

The population stability index of shares p, of the tested split, and q, of now, over the bins of a
histogram is the sum of (q - p) ln(q / p), see Yurdakul and Naranjo, "Statistical properties of the
population stability index", Journal of Risk Model Validation 14 (4), 2020. It is 0 if they are
equal. By custom, less than 0.1 is no change and more than 0.25 is one to act on. Without any
drift, B bins with N and M rows give about (B - 1) (1 / N + 1 / M).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

from dlrm_jax.artifact.notes import BaselineNote
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.unseen_values import UnseenValues

SCORE_EDGES = tuple(float(f"{1 / (1 + math.exp(-x / 2)):.4g}") for x in range(-16, 17))
"""Upper edges of the bins of probabilities: logits from -8 to 8 in steps of 1/2, rounded. One more
bin has what is above.
"""

_BLOCKS = 20
_ROWS = 1 << 18


def counts_of(
    values: Float[np.ndarray, " N"],
    edges: Sequence[float] | Float64[np.ndarray, " E"] = SCORE_EDGES,
) -> Int64[np.ndarray, " B"]:
    """The number of values in each bin: up to each edge, and above the last."""
    places = np.asarray(edges, np.float64).searchsorted(values)
    return np.bincount(places, minlength=len(edges) + 1)


def stability_index(expected: Int64[np.ndarray, " B"], found: Int64[np.ndarray, " B"]) -> float:
    """The population stability index of two histograms of the same bins.

    Half a row is added to each bin, as the logarithm of an empty one isn't finite.

    Args:
        expected: rows of each bin, of the tested split.
        found: rows of each bin, now.
    """
    p, q = (_shares(np.asarray(counts)) for counts in (expected, found))
    return float(((q - p) * np.log(q / p)).sum())


def _shares(counts: Int64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
    return (counts + 0.5) / (counts.sum() + 0.5 * len(counts))


class SlidingCounts:
    """The counts of about the last rows: of blocks, of which the oldest is forgotten.

    Args:
        rows: fewest rows of a full window; it has at most a twentieth more, and the last batch.
        bins: number of bins.
    """

    def __init__(self, rows: int, bins: int):
        self._most, self._block = rows, max(1, rows // _BLOCKS)
        self._blocks = collections.deque([np.zeros(bins, np.int64)])
        self.counts = np.zeros(bins, np.int64)

    @property
    def rows(self) -> int:
        """The number of rows in the window."""
        return int(self.counts.sum())

    def add(self, counts: Int64[np.ndarray, " B"]) -> None:
        """Adds the counts of further rows."""
        if self._blocks[-1].sum() >= self._block:
            self._blocks.append(np.zeros_like(self.counts))
        self._blocks[-1] += counts
        found = self.counts + counts
        while found.sum() - self._blocks[0].sum() >= self._most:
            found = found - self._blocks.popleft()
        self.counts = found  # as a whole: another thread reads it


def baseline_of(
    name: str,
    split: Split,
    probabilities: Float64[np.ndarray, "N *_"],
    labels: tuple[str, ...],
    metadata: Metadata | None,
) -> BaselineNote:
    """What a manifest says of a split that the model has predicted.

    Args:
        name: name of the split.
        split: rows of the split.
        probabilities: predictions of the rows.
        labels: names of the labels.
        metadata: description of the data of training; None if it isn't there.
    """
    columns = probabilities.reshape(-1, len(labels)).T
    scores = {x: tuple(counts_of(y).tolist()) for x, y in zip(labels, columns, strict=True)}
    shares: dict[str, float] = {}
    if metadata is not None:
        unseen = UnseenValues.of(metadata)
        for first in range(0, len(split), _ROWS):
            for day in split[first : first + _ROWS].days:
                unseen.add(np.asarray(day.ids))
        shares = unseen.shares()
    return BaselineNote(name, SCORE_EDGES, scores, shares)
