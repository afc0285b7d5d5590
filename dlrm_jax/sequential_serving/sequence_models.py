"""The models of sequences of a server, and what answers their requests."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from dlrm_jax.errors import UserError
from dlrm_jax.sequential.saved_model import TABLE, read_model
from dlrm_jax.sequential_serving.history_rows import answer_of, questions_of, read_histories
from dlrm_jax.sequential_serving.served_recommender import Asked, ServedRecommender
from dlrm_jax.serving.answers import Answers, off_loop
from dlrm_jax.serving.http_messages import json_response, read_body
from dlrm_jax.serving.options import Options
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.request_log import RequestNotes
from dlrm_jax.serving.server_metrics import ServerMetrics
from dlrm_jax.serving.versions import Version

_log = logging.getLogger(__name__)


class SequenceModels:
    """Models of sequences of a server; see `ModelKind`.

    Args:
        options: settings of the server.
        metrics: counters of the server.

    Raises:
        UserError: features are to be faded.
    """

    def __init__(self, options: Options, metrics: ServerMetrics):
        if options.fade:
            raise UserError(
                "fade: expected a model of rows, got one of sequences; leave --fade out"
            )
        self._options, self._metrics = options, metrics

    def table_paths(self, directory: Path) -> Sequence[Path]:
        """The file of a version's table."""
        return [directory / TABLE]

    def load(self, version: Version) -> ServedRecommender:
        """Loads a version, and compiles all its sizes."""
        options, recommender = self._options, read_model(version.directory)
        served = ServedRecommender(
            version.name,
            recommender,
            # The first of many packs would wait for the last one.
            min(options.batch_size, recommender.program.history_sizes[-1]),
            options.queued_rows,
            self._metrics.observer_of_batches(version.name),
        )
        try:
            served.warm_up()
        except BaseException:
            served.close()
            raise
        _log.info("version %s: %s", version.name, recommender)
        return served

    def check(self) -> None:
        """Nothing depends on the versions."""

    def forget(self, version: str) -> None:
        """Forgets a version that isn't served any more."""
        self._metrics.forget(version)

    def answers(self, repository: Repository) -> Answers:
        """What answers requests."""
        return SequenceAnswers(self._options.name, repository, self._options.limits)


class SequenceAnswers(Answers):
    """Answers requests with histories."""

    async def infer(self, request: Request) -> Response:
        """Refuses a request of the Open Inference Protocol.

        Raises:
            UserError: always.
        """
        raise UserError(
            "expected POST /predict with histories as JSON, as a model of sequences has no tensors "
            "of the Open Inference Protocol"
        )

    async def predict(self, request: Request) -> Response:
        """Answers a request of JSON."""
        body = await read_body(request, self._limits)
        RequestNotes.of(request).ended("read")
        async with self.in_time():
            given = await off_loop(len(body), read_histories, body)
            self.check_count(len(given))

            def encode(model: ServedRecommender, known_only: bool) -> Asked:
                del known_only  # values are looked up in a dictionary
                return questions_of(model.recommender, given)

            _, found = await self.answered(request, encode, len(body))
        return json_response(answer_of(found))
