"""Rows of a split with their predictions, in memory: what a report of a run looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.inference.predictor import Predictor, sigmoid
from dlrm_jax.training.metrics import binary_metrics


@dataclasses.dataclass(frozen=True)
class ScoredRows:
    """N rows of a split and their predictions.

    Attributes:
        split: name of the split.
        total: number of rows of the split; at least N.
        examples: the rows, evenly spaced in the split.
        days: number of each row's day, [N].
        logits: predictions, [N].
    """

    split: str
    total: int
    examples: Examples
    days: Int64[np.ndarray, " N"]
    logits: Float32[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def labels(self) -> Float32[np.ndarray, " N"]:
        """The labels, of 0 to 1."""
        return self.examples.labels.astype(np.float32)

    def metrics(self, chosen: Bool[np.ndarray, " N"] | None = None) -> dict[str, float | int]:
        """`binary_metrics` of all rows or of those chosen, with their mean label and prediction.

        ``deviation`` is the sum of labels less that of predictions, in standard deviations of the
        former: more than 3 or less than -3 is hardly chance.
        """
        logits, labels = self.logits, self.labels
        if chosen is not None:
            logits, labels = logits[chosen], labels[chosen]
        probabilities = sigmoid(logits)
        spread = float(np.sqrt(np.sum(probabilities * (1 - probabilities))))
        difference = float(np.sum(labels, dtype=np.float64) - np.sum(probabilities))
        return {
            **binary_metrics(logits, labels),
            "label_rate": float(labels.mean(dtype=np.float64)),
            "prediction": float(probabilities.mean()),
            "deviation": difference / spread if spread else float("nan"),
        }


def score(
    predictor: Predictor, name: str, split: Split, days: Sequence[int], most: int
) -> ScoredRows:
    """Predicts the rows of a split, or so many of them, evenly spaced.

    Args:
        predictor: model.
        name: name of the split.
        split: rows; at least one.
        days: number of the day that each of ``split.days`` is of.
        most: largest number of rows.

    Raises:
        UserError: a prediction isn't finite.
    """
    count = min(len(split), most)
    rows = np.arange(count) * len(split) // count
    ends = np.cumsum([len(day) for day in split.days])
    # Rows of a day without any are skipped: the day of a row is the first that ends behind it.
    numbers = np.asarray(days, np.int64)[np.searchsorted(ends, rows, side="right")]
    examples = split.take(rows)
    return ScoredRows(name, len(split), examples, numbers, logits_of(predictor, examples))


def logits_of(predictor: Predictor, examples: Examples) -> Float32[np.ndarray, " N"]:
    """The logits of rows in memory; always by the program of one batch size."""
    return np.concatenate([*predictor.logits(Split((examples,)))])
