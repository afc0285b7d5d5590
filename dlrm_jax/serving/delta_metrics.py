"""What a server counts of the deltas of its versions."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from dlrm_jax.artifact.delta import DeltaNote


class DeltaMetrics:
    """Gauges of deltas, by version.

    Args:
        model: name of the model.
        registry: registry of the server's metrics.
    """

    def __init__(self, model: str, registry: CollectorRegistry):
        def gauge(name: str, help_text: str) -> Gauge:
            return Gauge(f"dlrm_jax_{name}", help_text, ["model", "version"], registry=registry)

        self._model = model
        self._number = gauge("delta_number", "Number of the last delta that was applied.")
        self._step = gauge("delta_step", "Training steps of the state that the last delta gave.")
        self._written = gauge(
            "delta_written_seconds", "Time when that state was taken, in seconds since 1970."
        )
        self._stale = gauge("delta_stale", "1 while a delta is damaged, lost or foreign.")
        self.of_versions = (self._number, self._step, self._written, self._stale)

    def looked(self, version: str, last: DeltaNote | None, is_stale: bool) -> None:
        """Notes what a look for deltas has found.

        Args:
            version: name of the version.
            last: delta that answers come from; None if no delta has been applied.
            is_stale: whether a delta is there that can't be applied.
        """
        labels = (self._model, version)
        if last:
            self._written.labels(*labels).set(last.written)
            self._step.labels(*labels).set(last.step)
            self._number.labels(*labels).set(last.number)
        else:  # those that are there are of another artifact of the name
            for gauge in (self._number, self._step, self._written):
                gauge.remove_by_labels({"model": self._model, "version": version})
        self._stale.labels(*labels).set(is_stale)
