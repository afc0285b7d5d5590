"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.preprocessing.unseen_values import UnseenValues
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.batcher import BatchTimes
from dlrm_jax.serving.served_model import Observer

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SCORES = tuple(i / 20 for i in range(1, 21))

_Buckets = Sequence[float]


class ServerMetrics:
    """Counters and histograms of a server.

    Args:
        model: name of the model, a label of all that is counted of it.
    """

    def __init__(self, model: str):
        registry = CollectorRegistry()
        by_version = ["model", "version"]

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"dlrm_jax_{name}", help_text, labels, registry=registry)

        def histogram(name: str, help_text: str, buckets: _Buckets, *labels: str) -> Histogram:
            return Histogram(
                f"dlrm_jax_{name}", help_text, labels, registry=registry, buckets=buckets
            )

        self._registry, self._model = registry, model
        self.requests = counter("requests", "HTTP requests.", "path", "status")
        self.request_seconds = histogram(
            "request_seconds", "Seconds from request to response.", _SECONDS, "path"
        )
        self._waited = histogram(
            "queue_seconds", "Seconds that requests waited.", _SECONDS, *by_version
        )
        self._computed = histogram(
            "batch_seconds", "Seconds of a batch: ids, lookups, model.", _SECONDS, *by_version
        )
        self._rows = histogram("batch_rows", "Rows of a batch.", _ROWS, *by_version)
        self._scores = histogram(
            "probability", "Predicted probabilities.", _SCORES, *by_version, "label"
        )
        self._values = counter("values", "Values that aren't missing.", *by_version, "column")
        self._unseen = counter(
            "unseen_values",
            "Values that training hadn't, or too rarely.",
            *by_version,
            "column",
        )
        self._queue = Gauge("dlrm_jax_queue_rows", "Rows that wait.", ["model"], registry=registry)

    def watch_queue(self, rows: Callable[[], int]) -> None:
        """Reads the number of rows that wait when metrics are asked for."""
        self._queue.labels(self._model).set_function(rows)

    def observer(self, version: str, predictor: Predictor) -> Observer:
        """Functions that count the work of a version of the model."""
        labels = (self._model, version)

        def batch(times: BatchTimes) -> None:
            self._rows.labels(*labels).observe(times.rows)
            self._computed.labels(*labels).observe(times.seconds)
            for seconds in times.waited:
                self._waited.labels(*labels).observe(seconds)

        def scored(examples: Examples, probabilities: Float64[np.ndarray, "N *_"]) -> None:
            names = predictor.labels
            for name, column in zip(names, probabilities.reshape(-1, len(names)).T, strict=True):
                histogram = self._scores.labels(*labels, name)
                for value in column.tolist():
                    histogram.observe(value)
            if predictor.vocabularies is None:
                return
            unseen = UnseenValues(predictor.encoder.metadata)
            unseen.add(np.asarray(examples.ids))
            for column, (few, many) in unseen.counts().items():
                self._values.labels(*labels, column).inc(many)
                self._unseen.labels(*labels, column).inc(few)

        return Observer(batch, scored)

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self._registry)
