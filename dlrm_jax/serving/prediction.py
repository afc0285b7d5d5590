"""The way of a prediction: request, rows, queue, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dlrm_jax.errors import UserError
from dlrm_jax.inference.rows import as_frame
from dlrm_jax.serving.batcher import Answer, ClosedError, DeadlineError, QueueFullError
from dlrm_jax.serving.http_messages import HttpError, Limits, json_response, read_body, too_late
from dlrm_jax.serving.live_fading import LiveFading
from dlrm_jax.serving.open_inference import HEADER_LENGTH, read_request, write_response
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.request_log import RequestNotes
from dlrm_jax.serving.served_model import Probabilities, Rows, ServedModel
from dlrm_jax.serving.server_metrics import ServerMetrics
from dlrm_jax.serving.tensors import outputs_of, rows_of


class Predictions:
    """Answers requests for predictions.

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
        self._name, self._repository, self._limits = name, repository, limits
        self._metrics, self._fading = metrics, fading

    def check_name(self, request: Request) -> None:
        """Checks the name of the model in a path."""
        if (name := request.path_params["name"]) != self._name:
            raise HttpError(404, f"there is no model {name!r}, only {self._name!r}")

    def model(self, request: Request) -> ServedModel:
        """The version that a path names, or the newest.

        Raises:
            HttpError: there is no such model or version.
        """
        if "name" in request.path_params:
            self.check_name(request)
        version = request.path_params.get("version")
        model = self._repository.get(version)
        if model is None:
            there = ", ".join(self._repository.versions)
            raise HttpError(404, f"there is no version {version!r}, only {there}")
        return model

    async def infer(self, request: Request) -> Response:
        """Answers a request of the Open Inference Protocol."""
        body = await read_body(request, self._limits)
        notes = RequestNotes.of(request)
        notes.ended("read")
        asked = read_request(body, request.headers.get(HEADER_LENGTH))
        if asked.id:
            notes.id = asked.id
        model, probabilities = await self._answer(
            request, lambda model: rows_of(model, asked.tensors)
        )
        tensors = outputs_of(model, probabilities)
        content, headers = write_response(self._name, model.version, asked, tensors)
        return Response(content, headers=headers)

    async def predict(self, request: Request) -> Response:
        """Answers a request of raw rows."""
        body = await read_body(request, self._limits)
        RequestNotes.of(request).ended("read")
        rows = _rows_of_json(body)
        self._check_rows(rows)

        def frame(model: ServedModel) -> Rows:
            if not model.takes_raw_rows:
                raise UserError(
                    "the model has no vocabularies, so it can't map raw rows to ids; send ids to "
                    f"/v2/models/{self._name}/infer"
                )
            encoder = model.predictor.encoder
            return as_frame(rows, encoder.columns, encoder.options.schema.dense)

        _, probabilities = await self._answer(request, frame)
        return json_response({"predictions": probabilities.tolist()})

    async def _answer(
        self, request: Request, rows_for: Callable[[ServedModel], Rows]
    ) -> tuple[ServedModel, Probabilities]:
        """The version that answers, and the probabilities.

        Args:
            request: request, whose body has been read.
            rows_for: function that gives the rows as a version takes them.
        """
        fading = self._fading
        if fading is None:
            return await self._unfaded(request, rows_for)
        request_id, seen = RequestNotes.of(request).id, dict[str, bool]()

        def faded(model: ServedModel) -> Rows:
            seen.clear()  # of a version that has just ended
            seen.update(fading.seen(model.version, request_id))
            return fading.apply(model.version, rows_for(model), seen)

        model, probabilities = await self._unfaded(request, faded)
        self._metrics.faded(model.version, seen, model.predictor.labels, probabilities)
        return model, probabilities

    async def _unfaded(
        self, request: Request, rows_for: Callable[[ServedModel], Rows]
    ) -> tuple[ServedModel, Probabilities]:
        """As `_answer`, with the rows as they are."""
        model, future = await self._submitted(request, rows_for)
        answer = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(request.receive())  # ends when the client does
        try:
            await asyncio.wait(
                (answer, gone), timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                stages = RequestNotes.of(request).stages
                stages["queue"], stages["compute"] = 1000 * future.waited, 1000 * future.computed
                return model, answer.result()
            if gone.done():
                raise ClientDisconnect
            raise DeadlineError
        except DeadlineError:
            raise too_late(self._limits) from None
        finally:
            answer.cancel()  # one that waits isn't computed
            gone.cancel()

    async def _submitted(
        self, request: Request, rows_for: Callable[[ServedModel], Rows]
    ) -> tuple[ServedModel, Answer[Probabilities]]:
        """The version that the path names, or the newest, and its future answer."""
        tried, notes = None, RequestNotes.of(request)
        while True:
            # After the body has come: a version may have been replaced meanwhile.
            model = self.model(request)
            if model is tried:  # it has ended, and no other has taken its place
                raise HttpError(503, "it has just ended", **{"retry-after": "1"})
            rows = await asyncio.to_thread(rows_for, model)  # others are answered meanwhile
            notes.rows, notes.version = len(rows), model.version
            self._check_rows(rows)
            notes.ended("prepare")
            try:
                return model, model.submit(rows, self._limits.seconds)
            except QueueFullError as error:
                seconds = f"{error.retry_after:.0f}"
                raise HttpError(503, str(error), **{"retry-after": seconds}) from None
            except ClosedError:
                tried = model

    def _check_rows(self, rows: Sized) -> None:
        if len(rows) > self._limits.rows:
            raise HttpError(413, f"expected at most {self._limits.rows} rows, got {len(rows)}")
        if not len(rows):
            raise UserError("expected at least one row, got none")


class _RawRows(msgspec.Struct, forbid_unknown_fields=True):
    rows: list[dict[str, Any]]


def _rows_of_json(body: bytes) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(body, type=_RawRows).rows
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f'expected {{"rows": [{{"column": value, …}}, …]}}: {error}') from error
