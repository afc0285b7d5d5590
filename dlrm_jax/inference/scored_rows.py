"""Rows of a split with their predictions, in memory: what a report of a run looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor, sigmoid
from dlrm_jax.training.metrics import METRICS, binary_metrics


@dataclasses.dataclass(frozen=True)
class ScoredRows:
    """N rows of a split and their predictions, of the main label if there are several.

    Attributes:
        split: name of the split.
        total: number of rows of the split; at least N.
        examples: the rows, evenly spaced in the split.
        days: number of each row's day, [N].
        labels: labels, of 0 to 1, [N].
        logits: predictions, [N], corrected for negative examples that were left out.
        weights: weights of the rows, [N]; 1 where the data have none. Those of label 0 stand for
            negative examples that were left out, too.
    """

    split: str
    total: int
    examples: Examples
    days: Int64[np.ndarray, " N"]
    labels: Float32[np.ndarray, " N"]
    logits: Float32[np.ndarray, " N"]
    weights: Float32[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def probabilities(self) -> Float64[np.ndarray, " N"]:
        """The predictions as probabilities."""
        return sigmoid(self.logits)

    def __getitem__(self, rows: Any) -> ScoredRows:
        """Some of the rows, as NumPy indexes them: by numbers or by a mask."""
        numbers = np.arange(len(self))[rows]
        return dataclasses.replace(
            self,
            examples=Split((self.examples,)).take(numbers),
            days=self.days[rows],
            labels=self.labels[rows],
            logits=self.logits[rows],
            weights=self.weights[rows],
        )

    def predicted(self, predictor: Predictor, **arrays: np.ndarray) -> ScoredRows:
        """The rows with other arrays of features, and what the model predicts for these."""
        examples = dataclasses.replace(self.examples, **arrays)
        return dataclasses.replace(
            self, examples=examples, logits=_main_logits(predictor, examples)
        )

    def metrics(self, chosen: Bool[np.ndarray, " N"] | None = None) -> dict[str, float | int]:
        """`binary_metrics` of all rows or of those chosen, with their mean label and prediction.

        Means are weighted. ``deviation`` is the weighted sum of labels less that of predictions, in
        standard deviations of the former: more than 3 or less than -3 is hardly chance. Rows that
        have no weight have no metrics: they are NaN.
        """
        logits, labels, weights = self.logits, self.labels, self.weights
        if chosen is not None:
            logits, labels, weights = logits[chosen], labels[chosen], weights[chosen]
        if not weights.any():
            return dict.fromkeys(_OF_ROWS, float("nan")) | {"examples": len(weights)}
        wide = weights.astype(np.float64)
        probabilities = sigmoid(logits)
        spread = float(np.sqrt(np.sum(wide**2 * probabilities * (1 - probabilities))))
        difference = float(np.sum(wide * (labels - probabilities)))
        return {
            **binary_metrics(logits, labels, None if (weights == 1).all() else weights),
            "label_rate": float(np.average(labels, weights=wide)),
            "prediction": float(np.average(probabilities, weights=wide)),
            "deviation": difference / spread if spread else float("nan"),
        }


_OF_ROWS = (*METRICS, "label_rate", "prediction", "deviation")


def score(
    predictor: Predictor,
    name: str,
    split: Split,
    days: Sequence[int],
    most: int,
    kept_negatives: float = 1.0,
) -> ScoredRows:
    """Predicts the rows of a split, or so many of them, evenly spaced.

    Rows without the label are left out.

    Args:
        predictor: model.
        name: name of the split.
        split: rows; at least one.
        days: number of the day that each of ``split.days`` is of.
        most: largest number of rows.
        kept_negatives: share of the examples of label 0 that the split has of all.

    Raises:
        UserError: a prediction isn't finite, or no row has the label.
    """
    rows = evenly_spaced_rows(len(split), most)
    ends = np.cumsum([len(day) for day in split.days])
    # Days without rows are skipped: the day of a row is the first that ends behind it.
    numbers = np.asarray(days, np.int64)[np.searchsorted(ends, rows, side="right")]
    examples = split.take(rows)
    labels = _main_labels(examples)
    logits = _main_logits(predictor, examples)
    weights = np.ones(len(rows), np.float32)
    if examples.sample_weights is not None:
        weights = examples.sample_weights
    if kept_negatives != 1:  # as in the metrics of training, see `Measures`
        weights = np.where(labels > 0.5, weights, weights / np.float32(kept_negatives))
    scored = ScoredRows(name, len(split), examples, numbers, labels, logits, weights)
    known = np.isfinite(labels)
    if not known.any():
        raise UserError(f"{name}: expected a row with the main label among {len(rows)}, got none")
    return scored if known.all() else scored[known]


def evenly_spaced_rows(total: int, most: int) -> Int64[np.ndarray, " N"]:
    """The numbers of at most so many rows, evenly spaced."""
    count = min(total, most)
    return np.arange(count) * total // count


def _main_labels(examples: Examples) -> Float32[np.ndarray, " N"]:
    return examples.labels.reshape(len(examples), -1)[:, 0].astype(np.float32)


def _main_logits(predictor: Predictor, examples: Examples) -> Float32[np.ndarray, " N"]:
    """Of rows in memory; always by the program of one batch size."""
    logits = np.concatenate([*predictor.logits(Split((examples,)))])
    return logits.reshape(len(logits), -1)[:, 0] + np.float32(predictor.shift)
