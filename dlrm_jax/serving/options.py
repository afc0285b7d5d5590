"""The settings of a server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dlrm_jax.serving.http_messages import Limits
from dlrm_jax.serving.server_metrics import DRIFT_ROWS


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is served.

    Attributes:
        name: name of the model in paths.
        versions: number of versions that are served: the newest that can be loaded.
        watch_seconds: seconds between two looks for new versions; 0 for none.
        batch_size: most rows of a batch.
        queued_rows: most rows that wait.
        limits: limits of a request.
        token: bearer token of requests; empty for none.
        connections: most connections of clients at a time.
        keep_alive: seconds after which a connection without another request is closed.
        fade: file of a schedule of features that are faded; None for none.
        drift_rows: number of the last rows whose predictions are compared with the baseline.
        log_requests: share of the requests that the log has a line about, besides failed ones.
        batch_tokens: most tokens of histories that models of requests encode together; 0 for those
            of the longest one.
    """

    name: str
    versions: int = 1
    watch_seconds: float = 0
    batch_size: int = 1024
    queued_rows: int = 16384
    limits: Limits = dataclasses.field(default_factory=Limits)
    token: str = ""
    connections: int = 1000
    keep_alive: int = 60
    fade: Path | None = None
    drift_rows: int = DRIFT_ROWS
    log_requests: float = 0.0
    batch_tokens: int = 0
