"""The server's HTTP interface: the Open Inference Protocol, and raw rows as JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Sized
from concurrent.futures import Future
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from dlrm_jax.errors import UserError
from dlrm_jax.inference.rows import as_frame
from dlrm_jax.serving.batcher import ClosedError, DeadlineError, QueueFullError
from dlrm_jax.serving.open_inference import (
    EXTENSIONS,
    HEADER_LENGTH,
    read_request,
    write_response,
)
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.served_model import Probabilities, Rows, ServedModel
from dlrm_jax.serving.server_metrics import ServerMetrics
from dlrm_jax.serving.tensors import model_metadata, outputs_of, rows_of

_log = logging.getLogger(__name__)

PROTOCOL_VERSION = "2"
"""What the server says that it is, the version of the protocol: that of the library would tell an
attacker which faults it has.
"""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may have.

    Attributes:
        body_bytes: most bytes of a body.
        rows: most rows.
        seconds: seconds after which it is given up.
    """

    body_bytes: int = 2**24
    rows: int = 8192
    seconds: float = 10.0


class _HttpError(Exception):
    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


Handler = Callable[[Request], Awaitable[Response]]


class App:
    """The routes of a server.

    Args:
        name: name of the model.
        repository: loaded versions.
        limits: limits of a request.
        metrics: counters of the server.
        token: bearer token that requests need, but for those of health; empty for none.
    """

    def __init__(
        self,
        name: str,
        repository: Repository,
        limits: Limits,
        metrics: ServerMetrics,
        token: str = "",
    ):
        self._name, self._repository = name, repository
        self._limits, self._metrics, self._token = limits, metrics, token
        metrics.watch_queue(lambda: repository.newest.waiting_rows)

    def routes(self) -> Starlette:
        """The application."""
        model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
        return Starlette(
            routes=[
                self._route("/v2", self._server),
                self._route("/v2/health/live", self._live, is_open=True),
                self._route("/v2/health/ready", self._ready, is_open=True),
                self._route("/metrics", self._prometheus),
                *(
                    route
                    for path in (model, version)
                    for route in (
                        self._route(path, self._model),
                        self._route(f"{path}/ready", self._model_ready),
                        self._route(f"{path}/infer", self._infer, "POST"),
                    )
                ),
                self._route("/v2/repository/index", self._index, "POST"),
                self._route("/v2/repository/models/{name}/load", self._load, "POST"),
                self._route("/predict", self._predict, "POST"),
            ]
        )

    def _route(
        self, path: str, handler: Handler, method: str = "GET", is_open: bool = False
    ) -> Route:
        async def answer(request: Request) -> Response:
            begun = time.perf_counter()
            try:
                if not is_open:
                    self._check_token(request)
                response = await handler(request)
            except _HttpError as error:
                response = _json({"error": error.message}, error.status, error.headers)
            except UserError as error:
                response = _json({"error": str(error)}, 400)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it
            except Exception:
                _log.exception("%s %s", method, path)
                response = _json({"error": "an error of the server; see its log"}, 500)
            self._metrics.requests.labels(path, response.status_code).inc()
            self._metrics.request_seconds.labels(path).observe(time.perf_counter() - begun)
            return response

        return Route(path, answer, methods=[method])

    def _check_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        expected = f"Bearer {self._token}"
        if self._token and not hmac.compare_digest(given.encode(), expected.encode()):
            raise _HttpError(401, "expected the bearer token", **{"www-authenticate": "Bearer"})

    # -- What the server and the model are ---------------------------------------------

    async def _server(self, _: Request) -> Response:
        return _json({"name": "dlrm_jax", "version": PROTOCOL_VERSION, "extensions": [*EXTENSIONS]})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        return _json({"ready": True})

    async def _prometheus(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _model(self, request: Request) -> Response:
        model = self._asked(request)
        return _json(model_metadata(self._name, self._repository.versions, model))

    async def _model_ready(self, request: Request) -> Response:
        self._asked(request)
        return await self._ready(request)

    async def _index(self, _: Request) -> Response:
        versions = self._repository.versions
        return _json([{"name": self._name, "version": x, "state": "READY"} for x in versions])

    async def _load(self, request: Request) -> Response:
        self._check_name(request)
        await self._body(request)
        try:
            new = await asyncio.to_thread(self._repository.refresh)
        except (UserError, OSError) as error:  # it names files
            _log.error("the versions that are served stay: %s", error)
            raise _HttpError(
                400,
                f"the newest version can't be loaded, the server's log says why; served are "
                f"{', '.join(self._repository.versions)}",
            ) from None
        return _json({"loaded": new, "versions": self._repository.versions})

    # -- Predictions -------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        asked = read_request(await self._body(request), request.headers.get(HEADER_LENGTH))
        model, probabilities = await self._answer(
            request, lambda model: rows_of(model, asked.tensors)
        )
        tensors = outputs_of(model, probabilities)
        content, headers = write_response(self._name, model.version, asked, tensors)
        return Response(content, headers=headers)

    async def _predict(self, request: Request) -> Response:
        rows = _rows_of_json(await self._body(request))
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
        return _json({"predictions": probabilities.tolist()})

    async def _answer(
        self, request: Request, rows_for: Callable[[ServedModel], Rows]
    ) -> tuple[ServedModel, Probabilities]:
        """The version that answers, and the probabilities.

        Args:
            request: request, whose body has been read.
            rows_for: function that gives the rows as a version takes them.
        """
        model, future = await self._submitted(request, rows_for)
        answer = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(request.receive())  # ends when the client does
        try:
            await asyncio.wait(
                (answer, gone), timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                return model, answer.result()
            if gone.done():
                raise ClientDisconnect
            raise DeadlineError
        except DeadlineError:
            raise self._too_late() from None
        finally:
            answer.cancel()  # one that waits isn't computed
            gone.cancel()

    async def _submitted(
        self, request: Request, rows_for: Callable[[ServedModel], Rows]
    ) -> tuple[ServedModel, Future[Probabilities]]:
        """The version that the path names, or the newest, and its future answer."""
        tried = None
        while True:
            # After the body has come: a version may have been replaced meanwhile.
            model = self._asked(request)
            if model is tried:  # it has ended, and no other has taken its place
                raise _HttpError(503, "it has just ended", **{"retry-after": "1"})
            rows = await asyncio.to_thread(rows_for, model)  # others are answered meanwhile
            self._check_rows(rows)
            try:
                return model, model.submit(rows, self._limits.seconds)
            except QueueFullError as error:
                seconds = f"{error.retry_after:.0f}"
                raise _HttpError(503, str(error), **{"retry-after": seconds}) from None
            except ClosedError:
                tried = model

    def _check_rows(self, rows: Sized) -> None:
        if len(rows) > self._limits.rows:
            raise _HttpError(413, f"expected at most {self._limits.rows} rows, got {len(rows)}")
        if not len(rows):
            raise UserError("expected at least one row, got none")

    def _too_late(self) -> _HttpError:
        return _HttpError(504, f"no answer within {self._limits.seconds:g} s, the deadline")

    def _check_name(self, request: Request) -> None:
        if (name := request.path_params["name"]) != self._name:
            raise _HttpError(404, f"there is no model {name!r}, only {self._name!r}")

    def _asked(self, request: Request) -> ServedModel:
        """The version that a path names."""
        if "name" in request.path_params:
            self._check_name(request)
        version = request.path_params.get("version")
        model = self._repository.get(version)
        if model is None:
            there = ", ".join(self._repository.versions)
            raise _HttpError(404, f"there is no version {version!r}, only {there}")
        return model

    async def _body(self, request: Request) -> bytes:
        """The body, up to the limit."""
        most = self._limits.body_bytes
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise _HttpError(413, f"expected a body of at most {most} bytes")
                    parts.append(part)
        except TimeoutError:
            raise self._too_late() from None
        return b"".join(parts)


class _RawRows(msgspec.Struct, forbid_unknown_fields=True):
    rows: list[dict[str, Any]]


def _rows_of_json(body: bytes) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(body, type=_RawRows).rows
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f'expected {{"rows": [{{"column": value, …}}, …]}}: {error}') from error


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json")
