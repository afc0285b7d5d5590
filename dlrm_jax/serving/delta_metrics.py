"""What a server counts of the deltas of its versions."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge


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

    def applied(self, version: str, number: int, step: int, written: float) -> None:
        """Notes a delta that answers come from."""
        labels = (self._model, version)
        self._number.labels(*labels).set(number)
        self._step.labels(*labels).set(step)
        self._written.labels(*labels).set(written)

    def stale(self, version: str, is_stale: bool) -> None:
        """Notes whether a delta is there that can't be applied."""
        self._stale.labels(self._model, version).set(is_stale)
