"""The deltas of a version that is served, applied as they come."""

from __future__ import annotations

import dataclasses
import logging

from dlrm_jax.artifact.delta import DeltaNote
from dlrm_jax.artifact.delta_chain import DeltaChain
from dlrm_jax.artifact.updated_artifact import UpdatedArtifact
from dlrm_jax.errors import UserError
from dlrm_jax.inference.artifact_scorer import ArtifactScorer
from dlrm_jax.inference.live_scorer import LiveScorer
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.delta_metrics import DeltaMetrics
from dlrm_jax.serving.versions import Version

_log = logging.getLogger(__name__)


class FollowedDeltas:
    """The deltas of a version.

    Args:
        version: name of the version.
        chain: its deltas; none is read yet.
        live: artifact that they change.
        metrics: gauges of deltas.
    """

    def __init__(
        self, version: str, chain: DeltaChain, live: UpdatedArtifact, metrics: DeltaMetrics
    ):
        self._version, self._chain, self._live = version, chain, live
        self._metrics = metrics
        self._last: DeltaNote | None = None
        self._problem = ""

    def look(self) -> None:
        """Applies the deltas that are there, in order, up to the first that can't be.

        Why that can't be is logged once, and the end of it; the state before it stays, and each
        look tries again.
        """
        try:
            while delta := self._chain.read_next():
                self._live.apply(delta)
                self._chain.append(delta.note, delta.content)
                self._last = delta.note
            problem = ""
        except (UserError, OSError) as error:
            problem = str(error)
        if problem and problem != self._problem:
            _log.error(
                "version %s stays at delta %d: %s", self._version, self._chain.number, problem
            )
        if self._problem and not problem:
            _log.info("version %s goes on: it is at delta %d", self._version, self._chain.number)
        self._metrics.looked(self._version, self._last, bool(problem))
        self._problem = problem


def with_deltas(
    version: Version, predictor: Predictor, metrics: DeltaMetrics
) -> tuple[Predictor, FollowedDeltas]:
    """The predictor of a version's newest state, and its deltas; those that are there are applied.

    Args:
        version: version.
        predictor: predictor of its artifact that has just been loaded.
        metrics: gauges of deltas.
    """
    assert isinstance(predictor.scorer, ArtifactScorer)
    artifact = predictor.scorer.artifact
    live = UpdatedArtifact(artifact)
    chain = DeltaChain(version.directory, artifact.manifest)
    found = FollowedDeltas(version.name, chain, live, metrics)
    found.look()
    return dataclasses.replace(predictor, scorer=LiveScorer(artifact, live)), found
