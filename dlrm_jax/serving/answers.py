"""The way of a request to a version of the model: queue, answer, deadline."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dlrm_jax.errors import UserError, shown
from dlrm_jax.serving.batcher import Answer, ClosedError, DeadlineError, QueueFullError
from dlrm_jax.serving.http_messages import HttpError, Limits, too_late
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.request_log import RequestNotes

T = TypeVar("T")

Encode = Callable[[Any, bool], Any]
"""A function of a version, and of whether only values with known ids are wanted: microseconds.

It gives the request as the version takes it; None where ids must be looked for.
"""

_FEW_BYTES = 1 << 14
"""Bytes of a body that the event loop reads itself; a thread of its own takes longer."""


class Answers(abc.ABC):
    """Answers requests for predictions.

    Args:
        name: name of the model.
        repository: loaded versions.
        limits: limits of a request.
    """

    unit = "row"
    """What a request has some of."""

    def __init__(self, name: str, repository: Repository, limits: Limits):
        self._name, self._repository, self._limits = name, repository, limits

    @abc.abstractmethod
    async def infer(self, request: Request) -> Response:
        """Answers a request of the Open Inference Protocol."""

    @abc.abstractmethod
    async def predict(self, request: Request) -> Response:
        """Answers a request of raw values."""

    def check_name(self, request: Request) -> None:
        """Checks the name of the model in a path."""
        if (name := request.path_params["name"]) != self._name:
            raise HttpError(404, f"there is no model {shown(name)}, only {self._name!r}")

    def model(self, request: Request) -> Any:
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

    async def answered(self, request: Request, encode: Encode, size: int) -> tuple[Any, Any]:
        """The version that answers, and its answer, such as probabilities.

        Args:
            request: request, whose body has been read.
            encode: function that gives the request as a version takes it.
            size: bytes of the body.
        """
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
    ) -> tuple[Any, Answer[Any]]:
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
            self.check_count(len(rows))
            notes.ended("prepare")
            try:
                return model, model.submit(rows, self._limits.seconds)
            except QueueFullError as error:
                seconds = f"{error.retry_after:.0f}"
                raise HttpError(503, str(error), **{"retry-after": seconds}) from None
            except ClosedError:
                tried = model

    @contextlib.asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Gives up what takes longer than a request may: to read its rows, map and predict them."""
        timeout = asyncio.timeout(self._limits.seconds)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise too_late(self._limits) from None

    def check_count(self, count: int) -> None:
        """Checks the number of rows, or of what the requests have.

        Raises:
            HttpError: there are too many.
            UserError: there is none.
        """
        if count > self._limits.rows:
            raise HttpError(413, f"expected at most {self._limits.rows} {self.unit}s, got {count}")
        if not count:
            raise UserError(f"expected at least one {self.unit}, got none")


async def off_loop(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """The value of a function, which another thread calls if it has many bytes to work on."""
    if size <= _FEW_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)
