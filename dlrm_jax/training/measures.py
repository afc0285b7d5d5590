"""What is measured of the predictions of a split: the usual metrics, and those of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.groups import check_column, codes_of, first_places
from dlrm_jax.training.extra_metrics import ExtraMetric, Scored, extra_metrics
from dlrm_jax.training.metrics import binary_metrics
from dlrm_jax.training.sampling import log_odds_shift


@dataclasses.dataclass(frozen=True)
class Measures:
    """Metrics of a model.

    Attributes:
        extra: metrics besides `binary_metrics`.
        places: place of the first id of each feature in a row of ids, by name.
        shift: number to add to the model's logits, see `sampling.log_odds_shift`.
    """

    extra: tuple[ExtraMetric, ...] = ()
    places: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shift: float = 0.0

    def __call__(
        self, logits: Float[np.ndarray, " N"], split: Split, kept_negatives: float = 1.0
    ) -> dict[str, float | int]:
        """The metrics of all examples of a split.

        Args:
            logits: logits as the model gives them, [N].
            split: the examples.
            kept_negatives: share of the examples of label 0 that the split has of all. Those there
                are have its inverse as weight, so that metrics are those of all examples.
        """
        labels, weights = split.labels, _weights(split, kept_negatives)
        found = binary_metrics(logits, labels, weights, self.shift)
        if self.extra:
            rows = self._scored(logits, split, weights)
            for metric in self.extra:
                found |= metric(rows)
        return found

    def tables(
        self, logits: Float[np.ndarray, " N"], split: Split, kept_negatives: float = 1.0
    ) -> dict[str, list[dict[str, Any]]]:
        """The tables of calibrations, by the name of their metric."""
        rows = self._scored(logits, split, _weights(split, kept_negatives))
        found = {metric.name: metric.parts(rows) for metric in self.extra}
        return {name: parts.table() for name, parts in found.items() if parts is not None}

    @property
    def has_tables(self) -> bool:
        """Whether a metric has a table."""
        return any(metric.kind.startswith("calibration") for metric in self.extra)

    def _scored(
        self, logits: np.ndarray, split: Split, weights: np.ndarray | None
    ) -> Scored:
        columns = {metric.column for metric in self.extra if metric.column}
        groups = {column: codes_of(split, column, self.places) for column in sorted(columns)}
        return Scored(logits, self.shift, split.labels, weights, groups)


def measures_of(config: Config, data: Dataset) -> Measures:
    """The metrics of a config, for the splits of its data.

    Raises:
        UserError: one groups by a column that the data don't have.
    """
    extra = extra_metrics(config.metrics)
    for metric in extra:
        if metric.column:
            check_column("metrics", metric.name, metric.column, data)
    shift = log_odds_shift(config, data.kept_negatives.get("train", 1.0))
    return Measures(extra, first_places(data), shift)


def _weights(split: Split, kept_negatives: float) -> np.ndarray | None:
    weights = split.sample_weights
    if kept_negatives == 1:
        return weights
    of_label = np.where(split.labels > 0.5, 1.0, 1 / kept_negatives)
    return of_label if weights is None else of_label * weights
