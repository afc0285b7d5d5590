"""What is measured of the predictions of a split: the usual metrics, and those of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.groups import check_column, codes_of, first_places
from dlrm_jax.errors import UserError
from dlrm_jax.training.extra_metrics import ExtraMetric, Scored, extra_metrics
from dlrm_jax.training.label_metrics import label_metrics, no_metrics, prefix
from dlrm_jax.training.losses import group_column
from dlrm_jax.training.metrics import HIGHER_IS_BETTER, METRICS, binary_metrics, higher_is_better
from dlrm_jax.training.sampling import log_odds_shift


@dataclasses.dataclass(frozen=True)
class Measures:
    """Metrics of a model.

    Attributes:
        extra: metrics besides `binary_metrics`.
        places: place of the first id of each feature in a row of ids, by name.
        shift: number to add to the model's logits, see `sampling.log_odds_shift`.
        labels: names of the labels, the main one first; see `label_metrics` for the names of
            metrics.
    """

    extra: tuple[ExtraMetric, ...] = ()
    places: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shift: float = 0.0
    labels: tuple[str, ...] = ("label",)

    def __call__(
        self, logits: Float[np.ndarray, "N *_"], split: Split, kept_negatives: float = 1.0
    ) -> dict[str, float | int]:
        """The metrics of all examples of a split; NaN of a label without an example with a weight.

        Args:
            logits: logits as the model gives them, [N], or [N, H] of several labels.
            split: the examples.
            kept_negatives: share of the examples of label 0 that the split has of all. Those there
                are have its inverse as weight, so that metrics are those of all examples.
        """
        weights, groups = _weights(split, kept_negatives), self._groups(split)

        def of_label(logits: np.ndarray, labels: np.ndarray, own: Any) -> dict[str, float | int]:
            rows = self._scored(logits, labels, weights, groups, own)
            if rows.weights is not None and not rows.weights.any():
                return no_metrics(self.numbers, len(labels))
            found = binary_metrics(logits, labels, rows.weights, self.shift)
            for metric in self.extra:
                found |= metric(rows)
            return found

        return label_metrics(logits, split.labels, self.labels, of_label, self.numbers)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of a label's numbers besides ``examples``."""
        return (*METRICS, *(name for metric in self.extra for name in metric.numbers))

    def are_in(self, found: Mapping[str, Any]) -> bool:
        """Whether metrics of other measures, as of an earlier start, have all further ones."""
        further = [name for metric in self.extra for name in metric.numbers]
        names = [prefix(self.labels, label) + name for label in self.labels for name in further]
        return all(name in found for name in names)

    def tables(
        self, logits: Float[np.ndarray, "N *_"], split: Split, kept_negatives: float = 1.0
    ) -> dict[str, list[dict[str, Any]]]:
        """The tables of calibrations, by the name of their metric."""
        weights, groups = _weights(split, kept_negatives), self._groups(split)

        def of_label(logits: np.ndarray, labels: np.ndarray, own: Any) -> dict[str, Any]:
            rows = self._scored(logits, labels, weights, groups, own)
            found = {metric.name: metric.parts(rows) for metric in self.extra}
            return {name: parts.table() for name, parts in found.items() if parts is not None}

        tables = label_metrics(logits, split.labels, self.labels, of_label)
        return {name: table for name, table in tables.items() if isinstance(table, list)}

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
        return any(metric.has_parts for metric in self.extra)

    def _groups(self, split: Split) -> dict[str, np.ndarray]:
        columns = {metric.column for metric in self.extra if metric.column}
        return {column: codes_of(split, column, self.places) for column in sorted(columns)}

    def _scored(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None,
        groups: Mapping[str, np.ndarray],
        own: Any,
    ) -> Scored:
        """Some examples' logits and labels of one label; weights and groups are of all."""
        of_own = {column: codes[own] for column, codes in groups.items()}
        return Scored(logits, self.shift, labels, None if weights is None else weights[own], of_own)


def check_metrics(config: Config) -> None:
    """Checks the metrics that a config names, before data are read; imports functions.

    Raises:
        UserError: one is malformed, fails, or can't choose a model and is ``best_metric``.
    """
    for metric in extra_metrics(config.metrics):
        metric.check_function()
    best, known = config.best_metric, choosing_metrics(config)
    # The names of labels are those of the data: see `label_settings`.
    if not any(best == name or best.endswith(f"/{name}") for name in known):
        raise UserError(
            f"best_metric: expected one of {', '.join(HIGHER_IS_BETTER)}, or of metrics "
            f"({', '.join(config.metrics) or 'there are none'}), got {best!r}"
        )
    higher_is_better(best)


def choosing_metrics(config: Config) -> list[str]:
    """The metrics of a label that may choose a model, if it is known whether more is better."""
    numbers = [name for metric in extra_metrics(config.metrics) for name in metric.numbers]
    return [*HIGHER_IS_BETTER, *numbers]


def check_columns(config: Config, data: Dataset) -> None:
    """Checks that data have the columns that metrics and loss group by; see `check_grouping`."""
    check_grouping(config, data.columns, list(data.train.days[0].groups))


def check_grouping(config: Config, columns: Sequence[str], groups: Sequence[str]) -> None:
    """Checks that metrics and loss group by columns that are there.

    Args:
        config: config of the run.
        columns: categorical features of the data.
        groups: columns of the schema's ``groups``.

    Raises:
        UserError: one isn't; the message names the field.
    """
    for metric in extra_metrics(config.metrics):
        if metric.column:
            check_column("metrics", metric.name, metric.column, columns, groups)
    if column := group_column(config.loss):
        check_column("loss", config.loss, column, columns, groups)


def measures_of(config: Config, data: Dataset) -> Measures:
    """The metrics of a config, for the splits of its data."""
    shift = log_odds_shift(config, data.kept_negatives.get("train", 1.0))
    return Measures(extra_metrics(config.metrics), first_places(data), shift, data.labels)


def _weights(split: Split, kept_negatives: float) -> np.ndarray | None:
    weights = split.sample_weights
    if kept_negatives == 1:
        return weights
    of_label = np.where(split.labels > 0.5, 1.0, 1 / kept_negatives)
    return of_label if weights is None else of_label * weights
