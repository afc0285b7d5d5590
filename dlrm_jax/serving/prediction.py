"""The way of a prediction: request, rows, queue, answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dlrm_jax.errors import UserError, shown
from dlrm_jax.serving.batcher import Answer, ClosedError, DeadlineError, QueueFullError
from dlrm_jax.serving.http_messages import HttpError, Limits, json_response, read_body, too_late
from dlrm_jax.serving.live_fading import LiveFading
from dlrm_jax.serving.open_inference import HEADER_LENGTH, read_request, write_response
from dlrm_jax.serving.raw_rows import encoded, read_rows
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.request_log import RequestNotes
from dlrm_jax.serving.served_model import Probabilities, Rows, ServedModel
from dlrm_jax.serving.server_metrics import ServerMetrics
from dlrm_jax.serving.tensors import outputs_of, rows_of

T = TypeVar("T")

Encode = Callable[[ServedModel, bool], Rows | None]
"""A function of a version, and of whether only values with known ids are wanted: microseconds."""

_FEW_BYTES = 1 << 14
"""Bytes of a body that the event loop reads itself; a thread of its own takes longer."""


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
            raise HttpError(404, f"there is no model {shown(name)}, only {self._name!r}")

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
            raise HttpError(404, f"there is no version {shown(version)}, only {there}")
        return model

    async def infer(self, request: Request) -> Response:
        """Answers a request of the Open Inference Protocol."""
        body = await read_body(request, self._limits)
        notes = RequestNotes.of(request)
        notes.ended("read")
        length = request.headers.get(HEADER_LENGTH)
        async with self._in_time():
            asked = await _off_loop(len(body), read_request, body, length, self._check_rows)
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
        async with self._in_time():
            given = await _off_loop(len(body), read_rows, body, content_type)
            self._check_rows(len(given))
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
            return await self._unfaded(request, encode, size)
        request_id, seen = RequestNotes.of(request).id, dict[str, bool]()

        def faded(model: ServedModel, known_only: bool) -> Rows | None:
            if (rows := encode(model, known_only)) is None:
                return None
            seen.clear()  # of a version that has just ended
            seen.update(fading.seen(model.predictor, request_id))
            examples = fading.apply(model.predictor, rows.examples, seen)
            return dataclasses.replace(rows, examples=examples)

        model, probabilities = await self._unfaded(request, faded, size)
        self._metrics.faded(model.version, seen, model.predictor.labels, probabilities)
        return model, probabilities

    async def _unfaded(
        self, request: Request, encode: Encode, size: int
    ) -> tuple[ServedModel, Probabilities]:
        """As `_answer`, with the rows as they are."""
        model, future = await self._submitted(request, encode, size)
        answer = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(request.receive())  # ends when the client does
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                stages = RequestNotes.of(request).stages
                stages["queue"], stages["compute"] = 1000 * future.waited, 1000 * future.computed
                return model, answer.result()
            raise ClientDisconnect
        except DeadlineError:
            raise too_late(self._limits) from None
        finally:
            answer.cancel()  # one that waits isn't computed
            gone.cancel()

    async def _submitted(
        self, request: Request, encode: Encode, size: int
    ) -> tuple[ServedModel, Answer[Probabilities]]:
        """The version that the path names, or the newest, and its future answer."""
        tried, notes = None, RequestNotes.of(request)
        while True:
            # After the body has come: a version may have been replaced meanwhile.
            model = self.model(request)
            if model is tried:  # it has ended, and no other has taken its place
                raise HttpError(503, "it has just ended", **{"retry-after": "1"})
            rows = encode(model, True) if size <= _FEW_BYTES else None
            if rows is None:  # others are answered meanwhile
                rows = await asyncio.to_thread(encode, model, False)
            if rows is None:
                raise TypeError("rows without ids")
            notes.rows, notes.version = len(rows), model.version
            self._check_rows(len(rows))
            notes.ended("prepare")
            try:
                return model, model.submit(rows, self._limits.seconds)
            except QueueFullError as error:
                seconds = f"{error.retry_after:.0f}"
                raise HttpError(503, str(error), **{"retry-after": seconds}) from None
            except ClosedError:
                tried = model

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Gives up what takes longer than a request may: to read its rows, map and predict them."""
        timeout = asyncio.timeout(self._limits.seconds)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise too_late(self._limits) from None

    def _check_rows(self, count: int) -> None:
        if count > self._limits.rows:
            raise HttpError(413, f"expected at most {self._limits.rows} rows, got {count}")
        if not count:
            raise UserError("expected at least one row, got none")


async def _off_loop(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """The value of a function, which another thread calls if it has many bytes to work on."""
    if size <= _FEW_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)
