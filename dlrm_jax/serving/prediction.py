"""Predictions of rows: raw ones, and those of the Open Inference Protocol."""

from __future__ import annotations

import dataclasses

from starlette.requests import Request
from starlette.responses import Response

from dlrm_jax.serving.answers import Answers, Encode, off_loop
from dlrm_jax.serving.http_messages import Limits, json_response, read_body
from dlrm_jax.serving.live_fading import LiveFading
from dlrm_jax.serving.open_inference import HEADER_LENGTH, read_request, write_response
from dlrm_jax.serving.raw_rows import encoded, read_rows
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.request_log import RequestNotes
from dlrm_jax.serving.served_model import Rows, ServedModel
from dlrm_jax.serving.served_version import Probabilities
from dlrm_jax.serving.server_metrics import ServerMetrics
from dlrm_jax.serving.tensors import outputs_of, rows_of


class Predictions(Answers):
    """Answers requests for predictions of rows.

    Args:
        name: name of the model.
        repository: loaded versions.
        limits: limits of a request.
        metrics: counters of the server.
        fading: features that are faded; None for none.
    """

    def __init__(
        self,
        name: str,
        repository: Repository,
        limits: Limits,
        metrics: ServerMetrics,
        fading: LiveFading | None = None,
    ):
        super().__init__(name, repository, limits)
        self._metrics, self._fading = metrics, fading

    async def infer(self, request: Request) -> Response:
        """Answers a request of the Open Inference Protocol."""
        body = await read_body(request, self._limits)
        notes = RequestNotes.of(request)
        notes.ended("read")
        length = request.headers.get(HEADER_LENGTH)
        async with self.in_time():
            asked = await off_loop(len(body), read_request, body, length, self.check_count)
            if asked.id:
                notes.id = asked.id
            model, probabilities = await self._answer(
                request,
                lambda model, known_only: rows_of(model, asked.tensors, known_only),
                len(body),
            )
        tensors = outputs_of(model, probabilities)
        content, headers = write_response(self._name, model.version, asked, tensors)
        return Response(content, headers=headers)

    async def predict(self, request: Request) -> Response:
        """Answers a request of raw rows."""
        body = await read_body(request, self._limits)
        RequestNotes.of(request).ended("read")
        content_type = request.headers.get("content-type", "")
        async with self.in_time():
            given = await off_loop(len(body), read_rows, body, content_type)
            self.check_count(len(given))
            _, probabilities = await self._answer(
                request, lambda model, known_only: encoded(model, given, known_only), len(body)
            )
        return json_response({"predictions": probabilities.tolist()})

    async def _answer(
        self, request: Request, encode: Encode, size: int
    ) -> tuple[ServedModel, Probabilities]:
        """The version that answers, and the probabilities.

        Args:
            request: request, whose body has been read.
            encode: function that gives the rows as a version takes them.
            size: bytes of the body.
        """
        fading = self._fading
        if fading is None:
            return await self.answered(request, encode, size)
        request_id, seen = RequestNotes.of(request).id, dict[str, bool]()

        def faded(model: ServedModel, known_only: bool) -> Rows | None:
            if (rows := encode(model, known_only)) is None:
                return None
            seen.clear()  # of a version that has just ended
            seen.update(fading.seen(model.predictor, request_id))
            examples = fading.apply(model.predictor, rows.examples, seen)
            return dataclasses.replace(rows, examples=examples)

        model, probabilities = await self.answered(request, faded, size)
        self._metrics.faded(model.version, seen, model.predictor.labels, probabilities)
        return model, probabilities
