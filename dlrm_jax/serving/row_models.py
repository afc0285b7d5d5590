"""The models that a server has by default: artifacts that predict rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.answers import Answers
from dlrm_jax.serving.followed_deltas import with_deltas
from dlrm_jax.serving.live_fading import LiveFading
from dlrm_jax.serving.options import Options
from dlrm_jax.serving.prediction import Predictions
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.served_model import ServedModel
from dlrm_jax.serving.server_metrics import ServerMetrics
from dlrm_jax.serving.table_files import artifact_tables
from dlrm_jax.serving.versions import Version

_log = logging.getLogger(__name__)


class RowModels:
    """Artifacts of a server; see `ModelKind`.

    Args:
        options: settings of the server.
        metrics: counters of the server.

    Raises:
        UserError: the schedule of features that are faded is none.
    """

    def __init__(self, options: Options, metrics: ServerMetrics):
        self._options, self._metrics = options, metrics
        self._fading = LiveFading(options.fade) if options.fade else None
        if self._fading:
            metrics.watch_schedule(self._fading.is_stale)

    def table_paths(self, directory: Path) -> Sequence[Path]:
        """The files of a version's tables."""
        return artifact_tables(directory)

    def load(self, version: Version) -> ServedModel:
        """Loads a version and warms it up."""
        options = self._options
        loaded = Predictor.load(version.directory, batch_size=options.batch_size)
        predictor, deltas = with_deltas(version, loaded, self._metrics.deltas)
        model = ServedModel(
            version.name,
            predictor,
            options.batch_size,
            options.queued_rows,
            self._metrics.observer(version.name, predictor),
            deltas,
        )
        try:
            model.warm_up()
            _log.info("version %s: %s", version.name, predictor.scorer)
            if self._fading:
                self._fading.add(version.name, predictor)
        except BaseException:
            model.close()
            raise
        return model

    def check(self) -> None:
        """Checks that some version has each feature that is faded."""
        if self._fading:
            self._fading.check()

    def forget(self, version: str) -> None:
        """Forgets a version that isn't served any more."""
        self._metrics.forget(version)
        if self._fading:
            self._fading.remove(version)

    def answers(self, repository: Repository) -> Answers:
        """What answers requests for predictions."""
        options = self._options
        return Predictions(options.name, repository, options.limits, self._metrics, self._fading)
