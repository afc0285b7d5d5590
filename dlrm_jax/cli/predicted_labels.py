"""The predictions of each label: their columns in a file, and their metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from dlrm_jax.console import status
from dlrm_jax.inference.part import Part
from dlrm_jax.inference.probabilities import sigmoid
from dlrm_jax.text_table import text_table
from dlrm_jax.training.extra_metrics import ExtraMetric
from dlrm_jax.training.metrics import METRICS
from dlrm_jax.training.streamed_measures import StreamedMeasures

PROBABILITY = "probability"


def predicted_columns(labels: Sequence[str]) -> list[str]:
    """The names of the columns: of several labels, with the name of each."""
    return [PROBABILITY] if len(labels) < 2 else [f"{PROBABILITY}_{label}" for label in labels]


class PredictedLabels:
    """Columns of predictions, and their metrics over the rows that have the label.

    Args:
        labels: names of the labels; one may have none.
        extra: metrics besides the usual ones, see `StreamedMeasures`.
        shift: number to add to each logit, see `sampling.log_odds_shift`.
        left_out: lines on metrics that aren't computed.

    Attributes:
        rows: number of rows so far.
    """

    def __init__(
        self,
        labels: Sequence[str],
        extra: tuple[Sequence[ExtraMetric], Mapping[str, int]] = ((), {}),
        shift: float = 0.0,
        left_out: Sequence[str] = (),
    ):
        self._columns = predicted_columns(labels)
        self._names = [*labels] if len(labels) > 1 else [""]
        self._metrics = [StreamedMeasures(extra, shift) for _ in self._columns]
        self._shift, self._left_out, self.rows = shift, left_out, 0
        self._is_weighted = False

    def add(self, part: Part) -> Iterator[pl.Series]:
        """Yields a column of probabilities for each label; counts the rows."""
        self.rows += len(part.logits)
        self._is_weighted |= part.rows.days[0].sample_weights is not None
        shape = len(part.logits), len(self._columns)
        logits, labels = part.logits.reshape(shape), part.labels.reshape(shape)
        for i, (column, metrics) in enumerate(zip(self._columns, self._metrics, strict=True)):
            metrics.add(logits[:, i], labels[:, i], part.rows)
            yield pl.Series(column, sigmoid(logits[:, i], self._shift))

    def show(self) -> bool:
        """Prints the metrics of each label that a row has; returns whether there are any."""
        known = {
            name: metrics
            for name, metrics in zip(self._names, self._metrics, strict=True)
            if metrics.rows
        }
        if not known:
            status("no metrics: the data have no labels of 0 or 1")
            return False
        found = {name: metrics.metrics() for name, metrics in known.items()}
        further = [x for x in next(iter(found.values())) if x not in (*METRICS, "examples")]
        for names in (METRICS, further):
            if names:
                lines = [
                    [*self._title(label), *(f"{metrics[x]:.5f}" for x in names)]
                    for label, metrics in found.items()
                ]
                status(text_table([*self._title(""), *names], lines))
        if further:
            status(f"{', '.join(further)}: computed with all labelled rows in memory")
        for name, metrics in known.items():
            if metrics.rows < self.rows:
                whose = f" of {name}" if name else ""
                weight = (
                    ", or a weight that is no number of at least 0" if self._is_weighted else ""
                )
                status(
                    f"metrics{whose} of {metrics.rows:,} rows: the others have no label of 0 or "
                    f"1{weight}"
                )
        for line in self._left_out:
            status(line)
        return True

    def _title(self, name: str) -> list[str]:
        return [name] if len(self._names) > 1 else []
