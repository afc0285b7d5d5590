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
from dlrm_jax.errors import UserError
from dlrm_jax.training.extra_metrics import ExtraMetric, Scored, extra_metrics
from dlrm_jax.training.losses import group_column
from dlrm_jax.training.metrics import HIGHER_IS_BETTER, binary_metrics, higher_is_better
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

    def check(self, split: Split) -> None:
        """Checks that examples have what the metrics group by.

        Raises:
            UserError: they lack a column of the schema's ``groups``.
        """
        for metric in self.extra:
            column = metric.column
            if column and column not in self.places and column not in split.days[0].groups:
                raise UserError(
                    f"metrics: {metric.name} needs examples with groups {column!r}, got some "
                    f"without; give them in Examples.groups"
                )

    @property
    def has_tables(self) -> bool:
        """Whether a metric has a table."""
        return any(metric.kind.startswith("calibration") for metric in self.extra)

    def _scored(self, logits: np.ndarray, split: Split, weights: np.ndarray | None) -> Scored:
        columns = {metric.column for metric in self.extra if metric.column}
        groups = {column: codes_of(split, column, self.places) for column in sorted(columns)}
        return Scored(logits, self.shift, split.labels, weights, groups)


def check_metrics(config: Config) -> None:
    """Checks the metrics that a config names, before data are read; imports functions.

    Raises:
        UserError: one is malformed, fails, or can't choose a model and is ``best_metric``.
    """
    for metric in extra_metrics(config.metrics):
        metric.check_function()
    best = config.best_metric
    known = [*HIGHER_IS_BETTER, *config.metrics]
    known += [f"{x}:worst" for x in config.metrics if x.startswith("calibration_")]
    if best not in known:
        raise UserError(
            f"best_metric: expected one of {', '.join(HIGHER_IS_BETTER)}, or of metrics "
            f"({', '.join(config.metrics) or 'there are none'}), got {best!r}"
        )
    higher_is_better(best)


def check_columns(config: Config, data: Dataset) -> None:
    """Checks that data have the columns that metrics and loss group by.

    Raises:
        UserError: they haven't; the message names the field.
    """
    for metric in extra_metrics(config.metrics):
        if metric.column:
            check_column("metrics", metric.name, metric.column, data)
    if column := group_column(config.loss):
        check_column("loss", config.loss, column, data)


def measures_of(config: Config, data: Dataset) -> Measures:
    """The metrics of a config, for the splits of its data."""
    shift = log_odds_shift(config, data.kept_negatives.get("train", 1.0))
    return Measures(extra_metrics(config.metrics), first_places(data), shift)


def _weights(split: Split, kept_negatives: float) -> np.ndarray | None:
    weights = split.sample_weights
    if kept_negatives == 1:
        return weights
    of_label = np.where(split.labels > 0.5, 1.0, 1 / kept_negatives)
    return of_label if weights is None else of_label * weights
