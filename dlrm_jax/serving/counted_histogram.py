"""Histograms for Prometheus of many values at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dlrm_jax.serving.drift import counts_of


class CountedHistogram(Collector):
    """A histogram that counts an array at once; that of the library takes one value at a time.

    Threads may share it.

    Args:
        name: name of the metric.
        help_text: sentence about it.
        edges: upper edges of the buckets, ascending.
        labels: names of its labels.
    """

    def __init__(self, name: str, help_text: str, edges: Sequence[float], *labels: str):
        self._name, self._help, self._labels = name, help_text, labels
        self._edges = np.array(edges, np.float64)
        self._bounds = [*map(str, self._edges.tolist()), "+Inf"]
        self._found: dict[tuple[str, ...], tuple[np.ndarray, float]] = {}
        self._changing = threading.Lock()

    def add(self, labels: Sequence[str], values: Float[np.ndarray, " N"]) -> None:
        """Counts values.

        Args:
            labels: values of the labels.
            values: finite values.
        """
        key, new, of_values = tuple(labels), counts_of(values, self._edges), float(values.sum())
        with self._changing:
            counts, total = self._found.get(key, (0, 0.0))
            self._found[key] = counts + new, total + of_values

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Forgets all that has these values of labels, as of the metrics of the library."""
        places = {self._labels.index(name): value for name, value in labels.items()}
        with self._changing:
            for key in [*self._found]:
                if all(key[place] == value for place, value in places.items()):
                    del self._found[key]

    def describe(self) -> Iterable[Metric]:
        """The metric without values."""
        return [HistogramMetricFamily(self._name, self._help, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """The metric."""
        family: Any = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for key, (counts, total) in [*self._found.items()]:
            below = np.cumsum(counts).tolist()
            family.add_metric(key, list(zip(self._bounds, below, strict=True)), total)
        return [family]
