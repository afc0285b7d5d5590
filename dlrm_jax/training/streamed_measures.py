"""The metrics of rows that come in chunks: the usual ones in bounded memory, others of all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Shaped

from dlrm_jax.data.arrays import Split
from dlrm_jax.data.groups import codes_of
from dlrm_jax.training.extra_metrics import ExtraMetric, Scored
from dlrm_jax.training.label_metrics import no_metrics
from dlrm_jax.training.metrics import METRICS
from dlrm_jax.training.streamed_metrics import LARGEST, StreamedMetrics


class StreamedMeasures:
    """The metrics of all labelled rows so far.

    `StreamedMetrics` needs little memory. Other metrics look at all rows at once: if there are any,
    logits, labels, weights and the codes of groups are kept, 12 bytes a row and 8 for each column.

    Args:
        extra: metrics besides the usual ones, and the place of the first id of each feature in a
            row of ids, by name.
        shift: number to add to each logit, see `sampling.log_odds_shift`.
        largest: number of distinct logits that are kept apart, see `StreamedMetrics`.

    Attributes:
        rows: number of labelled rows so far, those of a malformed weight left out.
    """

    def __init__(
        self,
        extra: tuple[Sequence[ExtraMetric], Mapping[str, int]],
        shift: float,
        largest: int = LARGEST,
    ):
        self.extra, self._places = extra
        self._usual, self._shift = StreamedMetrics(largest, shift), shift
        self._columns = sorted({x.column for x in self.extra if x.column})
        self._kept: list[list[np.ndarray]] = []
        self._weighted = False

    @property
    def rows(self) -> int:
        """See the class."""
        return self._usual.rows

    def add(
        self, logits: Float32[np.ndarray, " N"], labels: Shaped[np.ndarray, " N"], rows: Split
    ) -> None:
        """Adds rows; those without a label of 0 to 1 or without a weight count for nothing."""
        weights = rows.sample_weights
        counted = np.isfinite(labels)
        if weights is not None:
            counted &= np.isfinite(weights)
            self._weighted = True
        of_counted = None if weights is None else weights[counted]
        self._usual.add(logits[counted], labels[counted], of_counted)
        if self.extra:
            codes = [codes_of(rows, column, self._places)[counted] for column in self._columns]
            ones = np.ones(int(counted.sum()), np.float32)
            kept = ones if of_counted is None else of_counted
            self._kept.append([logits[counted], labels[counted], kept, *codes])

    def metrics(self) -> dict[str, float | int]:
        """The metrics by name, NaN if all weights are 0; there must be a labelled row.

        Raises:
            UserError: a function of the user's own gives no number.
        """
        if not self._usual.weight:
            names = (name for metric in self.extra for name in metric.numbers)
            return no_metrics((*METRICS, *names), self.rows)
        found = self._usual.metrics()
        if self.extra:
            logits, labels, weights, *codes = map(np.concatenate, zip(*self._kept, strict=True))
            groups = dict(zip(self._columns, codes, strict=True))
            of_rows = weights if self._weighted else None
            scored = Scored(logits, self._shift, labels, of_rows, groups)
            for metric in self.extra:
                found |= metric(scored)
        return found
