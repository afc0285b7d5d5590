"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dlrm_jax.artifact.notes import BaselineNote
from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.preprocessing.unseen_values import UnseenValues
from dlrm_jax.inference.artifact_scorer import ArtifactScorer
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.batcher import BatchTimes
from dlrm_jax.serving.counted_histogram import CountedHistogram
from dlrm_jax.serving.delta_metrics import DeltaMetrics
from dlrm_jax.serving.drift import SCORE_EDGES, SlidingCounts, counts_of, stability_index
from dlrm_jax.serving.served_version import Observer
from dlrm_jax.serving.value_counts import ValueCounts

DRIFT_ROWS = 50_000
_FEWEST = 1000  # rows whose drift is told: that of fewer is mostly chance

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

_Probabilities = Float64[np.ndarray, "N *_"]


class ServerMetrics:
    """Counters and histograms of a server.

    Args:
        model: name of the model, a label of all that is counted of it.
        drift_rows: number of the last rows whose predictions are compared with the baseline.
    """

    def __init__(self, model: str, drift_rows: int = DRIFT_ROWS):
        self._registry = registry = CollectorRegistry()
        self._model, self._drift_rows = model, drift_rows
        self._versions: set[str] = set()
        by_version = ["model", "version"]

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"dlrm_jax_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"dlrm_jax_{name}", help_text, labels, registry=registry)

        def histogram(
            name: str, help_text: str, buckets: Sequence[float], *labels: str
        ) -> Histogram:
            return Histogram(
                f"dlrm_jax_{name}", help_text, labels, registry=registry, buckets=buckets
            )

        def scores(name: str, help_text: str, *labels: str) -> CountedHistogram:
            made = CountedHistogram(f"dlrm_jax_{name}", help_text, SCORE_EDGES, *labels)
            registry.register(made)
            return made

        self.requests = counter("requests", "HTTP requests.", "path", "status")
        self.request_seconds = histogram(
            "request_seconds", "Seconds from request to response.", _SECONDS, "path"
        )
        self._queue = gauge("queue_rows", "Rows that wait.", "model")
        self._waited = histogram(
            "queue_seconds", "Seconds that requests waited.", _SECONDS, *by_version
        )
        self._computed = histogram(
            "batch_seconds", "Seconds of a batch: ids, lookups, model.", _SECONDS, *by_version
        )
        self._rows = histogram("batch_rows", "Rows of a batch.", _ROWS, *by_version)
        self._scores = scores("probability", "Predicted probabilities.", *by_version, "label")
        self._drift = gauge(
            "probability_drift",
            "Population stability index of the last probabilities against the tested split's.",
            *by_version,
            "label",
        )
        self._values = ValueCounts(model)
        registry.register(self._values)
        self._tested_unseen = gauge(
            "tested_unseen_share",
            "Share of such values in the split that the model was tested on.",
            *by_version,
            "column",
        )
        self._stale = gauge(
            "fade_schedule_stale",
            "1 while the schedule's file isn't one, and an earlier one counts.",
            "model",
        )
        by_feature = (*by_version, "feature", "coverage")
        self._faded = counter(
            "feature_requests", "Requests that see a feature, or not.", *by_feature
        )
        self._faded_scores = scores(
            "feature_probability",
            "Predicted probabilities of requests that see a feature, or not.",
            *by_feature,
            "label",
        )
        self.deltas = DeltaMetrics(model, registry)
        self._of_versions = (
            *self.deltas.of_versions,
            self._waited, self._computed, self._rows, self._scores, self._drift, self._values,
            self._tested_unseen, self._faded, self._faded_scores,
        )  # fmt: skip

    def watch_queue(self, rows: Callable[[], int]) -> None:
        """Reads the number of rows that wait when metrics are asked for."""
        self._queue.labels(self._model).set_function(rows)

    def watch_schedule(self, is_stale: Callable[[], bool]) -> None:
        """Looks at the schedule of features that are faded when metrics are asked for."""
        self._stale.labels(self._model).set_function(is_stale)

    def observer(self, version: str, predictor: Predictor) -> Observer:
        """Functions that count the work of a version of the model."""
        labels = (self._model, version)
        # With the first batch: a version that can't be loaded leaves that of its name as it is.
        watched = functools.cache(lambda: self._watch_drift(version, predictor))
        values = functools.cache(lambda: self._watch_values(version, predictor))

        def scored(examples: Examples, probabilities: _Probabilities) -> None:
            names, windows = predictor.labels, watched()
            for name, column in zip(names, probabilities.reshape(-1, len(names)).T, strict=True):
                self._scores.add((*labels, name), column)
                if name in windows:
                    edges, window = windows[name]
                    window.add(counts_of(column, edges))
            if predictor.vocabularies is not None:  # ids of a stream's values are never unseen
                values().add(np.asarray(examples.ids))

        return Observer(self._batches(version), scored)

    def observer_of_scores(self, version: str, label: str) -> Observer:
        """Functions that count batches and probabilities of one label alone.

        Args:
            version: name of the version.
            label: name of the label.
        """

        def scored(_: Any, probabilities: _Probabilities) -> None:
            self._scores.add((self._model, version, label), probabilities)

        return Observer(self._batches(version), scored)

    def observer_of_batches(self, version: str) -> Observer:
        """Functions that count the batches of a version whose answers are no probabilities."""
        return Observer(self._batches(version))

    def _batches(self, version: str) -> Callable[[BatchTimes], None]:
        labels = (self._model, version)
        self._versions.add(version)

        def batch(times: BatchTimes) -> None:
            self._rows.labels(*labels).observe(times.rows)
            self._computed.labels(*labels).observe(times.seconds)
            for seconds in times.waited:
                self._waited.labels(*labels).observe(seconds)

        return batch

    def _watch_values(self, version: str, predictor: Predictor) -> UnseenValues:
        """The counts of a model's values."""
        counts = predictor.encoder.unseen_values()
        self._values.watch(version, counts)
        return counts

    def _watch_drift(
        self, version: str, predictor: Predictor
    ) -> Mapping[str, tuple[Float64[np.ndarray, " E"], SlidingCounts]]:
        """The edges of the bins and the window of each label, if the artifact has a baseline."""
        for gauge in (self._drift, self._tested_unseen):  # of another artifact of the name
            gauge.remove_by_labels({"version": version})
        scorer = predictor.scorer
        baseline = scorer.artifact.manifest.baseline if isinstance(scorer, ArtifactScorer) else None
        if baseline is None:
            return {}
        for column, share in baseline.unseen.items():
            self._tested_unseen.labels(self._model, version, column).set(share)
        windows = {}
        for label, counts in baseline.scores.items():
            window = SlidingCounts(self._drift_rows, len(counts))
            windows[label] = np.array(baseline.edges), window
            drift = self._drift.labels(self._model, version, label)
            drift.set_function(_drift_of(baseline, label, window, min(_FEWEST, self._drift_rows)))
        return windows

    def faded(
        self,
        version: str,
        seen: Mapping[str, bool],
        labels: Sequence[str],
        probabilities: _Probabilities,
    ) -> None:
        """Counts a request whose features are faded.

        Args:
            version: version that has answered.
            seen: whether the request saw each feature.
            labels: names of the labels.
            probabilities: answer.
        """
        if version not in self._versions:  # it has just ended, and would never be forgotten
            return
        columns = probabilities.reshape(-1, len(labels)).T
        for feature, is_seen in seen.items():
            of_feature = (self._model, version, feature, "covered" if is_seen else "faded")
            self._faded.labels(*of_feature).inc()
            for label, column in zip(labels, columns, strict=True):
                self._faded_scores.add((*of_feature, label), column)

    def forget(self, version: str) -> None:
        """Removes what was counted of a version that isn't served any more."""
        self._versions.discard(version)
        for metric in self._of_versions:
            metric.remove_by_labels({"version": version})

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self._registry)


def _drift_of(
    baseline: BaselineNote, label: str, window: SlidingCounts, fewest: int
) -> Callable[[], float]:
    expected = np.array(baseline.scores[label])
    return lambda: stability_index(expected, window.counts) if window.rows >= fewest else math.nan
