"""The models of requests of a server, and what answers them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from dlrm_jax.errors import UserError
from dlrm_jax.request_serving.rows_of_log import checked_row, read_row, row_of_tensors
from dlrm_jax.request_serving.served_requests import ServedRequests
from dlrm_jax.requests.saved_model import read_model, table_paths
from dlrm_jax.requests.scorer import CheckedRequest
from dlrm_jax.serving.answers import Answers, off_loop
from dlrm_jax.serving.http_messages import json_response, read_body
from dlrm_jax.serving.open_inference import HEADER_LENGTH, read_request, write_response
from dlrm_jax.serving.options import Options
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.request_log import RequestNotes
from dlrm_jax.serving.server_metrics import ServerMetrics
from dlrm_jax.serving.tensors import outputs_of
from dlrm_jax.serving.versions import Version

_log = logging.getLogger(__name__)


class RequestModels:
    """Models of requests of a server; see `ModelKind`.

    Args:
        options: settings of the server.
        metrics: counters of the server.

    Raises:
        UserError: features are to be faded.
    """

    def __init__(self, options: Options, metrics: ServerMetrics):
        if options.fade:
            raise UserError("fade: expected a model of rows, got one of requests; leave --fade out")
        self._options, self._metrics = options, metrics

    def table_paths(self, directory: Path) -> Sequence[Path]:
        """The files of a version's tables."""
        return table_paths(directory)

    def load(self, version: Version) -> ServedRequests:
        """Loads a version, and compiles all its sizes."""
        options = self._options
        model = read_model(version.directory, options.batch_tokens, options.batch_size)
        observer = self._metrics.observer_of_scores(version.name, model.scorer.columns.label)
        served = ServedRequests(
            version.name, model, options.batch_size, options.queued_rows, observer
        )
        try:
            served.warm_up()
        except BaseException:
            served.close()
            raise
        sizes = model.scorer.program.sizes
        _log.info(
            "version %s: %s of up to %d actions, packs of %s tokens and %s candidates",
            version.name,
            model.scorer.settings.encoder,
            model.scorer.settings.evaluated_length,
            "/".join(map(str, sizes.tokens)),
            "/".join(map(str, sizes.candidates)),
        )
        return served

    def check(self) -> None:
        """Nothing depends on the versions."""

    def forget(self, version: str) -> None:
        """Forgets a version that isn't served any more."""
        self._metrics.forget(version)

    def answers(self, repository: Repository) -> Answers:
        """What answers requests."""
        return RequestAnswers(self._options.name, repository, self._options.limits)


class RequestAnswers(Answers):
    """Answers requests with a history and candidates."""

    unit = "candidate"

    async def infer(self, request: Request) -> Response:
        """Answers a request of the Open Inference Protocol, a tensor for each column."""
        body = await read_body(request, self._limits)
        notes = RequestNotes.of(request)
        notes.ended("read")
        length = request.headers.get(HEADER_LENGTH)

        def any_length(_: int) -> None:
            """Histories may be longer than what is read of them; the body limits them."""

        def encode(model: ServedRequests, known_only: bool) -> CheckedRequest | None:
            row = row_of_tensors(model.model.scorer.columns, asked.tensors)
            return None if known_only else checked_row(model.model, row)

        async with self.in_time():
            asked = await off_loop(len(body), read_request, body, length, any_length)
            if asked.id:
                notes.id = asked.id
            model, probabilities = await self.answered(request, encode, len(body))
        content, headers = write_response(
            self._name, model.version, asked, outputs_of(model, probabilities)
        )
        return Response(content, headers=headers)

    async def predict(self, request: Request) -> Response:
        """Answers a request of JSON."""
        body = await read_body(request, self._limits)
        RequestNotes.of(request).ended("read")

        def encode(model: ServedRequests, known_only: bool) -> CheckedRequest | None:
            return None if known_only else checked_row(model.model, row)

        async with self.in_time():
            row = await off_loop(len(body), read_row, body)
            _, probabilities = await self.answered(request, encode, len(body))
        return json_response({"predictions": probabilities.tolist()})
