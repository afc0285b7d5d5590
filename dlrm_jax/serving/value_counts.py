"""Values of each column for Prometheus: how many there were, and how many training hadn't."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from dlrm_jax.data.preprocessing.unseen_values import UnseenValues

_LABELS = ("model", "version", "column")


class ValueCounts(Collector):
    """Counters of values by version and column, read when metrics are asked for.

    So a batch costs two sums, and not two counters of the library for each column.

    Args:
        model: name of the model.
    """

    def __init__(self, model: str):
        self._model = model
        self._watched: tuple[tuple[str, UnseenValues], ...] = ()

    def watch(self, version: str, counts: UnseenValues) -> None:
        """Adds what is counted of a version. A version may have several, which are added up."""
        self._watched = (*self._watched, (version, counts))

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Forgets a version, as of the metrics of the library."""
        self._watched = tuple(x for x in self._watched if x[0] != labels["version"])

    def describe(self) -> Iterable[Metric]:
        """The metrics without values."""
        return self._families()

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        unseen, present = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for version, counts in self._watched:
            for column, (few, many) in counts.counts().items():
                unseen[version, column] += few
                present[version, column] += many
        families = self._families()
        for family, found in zip(families, (present, unseen), strict=True):
            for (version, column), count in found.items():
                family.add_metric((self._model, version, column), count)
        return families

    @staticmethod
    def _families() -> tuple[CounterMetricFamily, CounterMetricFamily]:
        return (
            CounterMetricFamily("dlrm_jax_values", "Values that aren't missing.", labels=_LABELS),
            CounterMetricFamily(
                "dlrm_jax_unseen_values",
                "Values that training hadn't, or too rarely.",
                labels=_LABELS,
            ),
        )
