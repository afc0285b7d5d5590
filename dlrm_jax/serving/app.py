"""The HTTP interface of the server: the Open Inference Protocol, and raw rows as JSON or Arrow."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from dlrm_jax.errors import UserError, shown
from dlrm_jax.serving.answers import Answers
from dlrm_jax.serving.http_messages import (
    HttpError,
    Limits,
    error_response,
    json_response,
    read_body,
)
from dlrm_jax.serving.open_inference import EXTENSIONS
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.request_log import RequestLog, RequestNotes
from dlrm_jax.serving.server_metrics import ServerMetrics
from dlrm_jax.serving.tensors import model_metadata

_log = logging.getLogger(__name__)

PROTOCOL_VERSION = "2"
"""What the server says that it is, the version of the protocol: that of the library would tell an
attacker which faults it has.
"""

_UNKNOWN = "unknown"  # what metrics and log call a path that there isn't

Handler = Callable[[Request], Awaitable[Response]]


class App:
    """The routes of a server.

    Args:
        name: name of the model.
        repository: loaded versions.
        predictions: answers of requests for predictions.
        limits: limits of a request.
        metrics: counters of the server.
        token: bearer token that requests need, but for those of health; empty for none.
        log: log of requests; None for that of failed ones.
    """

    def __init__(
        self,
        name: str,
        repository: Repository,
        predictions: Answers,
        limits: Limits,
        metrics: ServerMetrics,
        token: str = "",
        log: RequestLog | None = None,
    ):
        self._name, self._repository = name, repository
        self._limits, self._metrics, self._token = limits, metrics, token
        self._log = log or RequestLog()
        self._predictions = predictions
        metrics.watch_queue(lambda: repository.newest.waiting_rows)

    def routes(self) -> Starlette:
        """The application."""
        model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
        routes = [  # tried in this order
            self._route("/predict", self._predictions.predict, "POST"),
            self._route(f"{model}/infer", self._predictions.infer, "POST"),
            self._route(f"{version}/infer", self._predictions.infer, "POST"),
            self._route("/v2", self._server),
            self._route("/v2/health/live", self._live, is_open=True),
            self._route("/v2/health/ready", self._ready, is_open=True),
            self._route("/metrics", self._prometheus),
            *(
                route
                for path in (model, version)
                for route in (
                    self._route(path, self._model),
                    self._route(f"{path}/ready", self._model_ready, is_open=True),
                )
            ),
            self._route("/v2/repository/index", self._index, "POST"),
            self._route("/v2/repository/models/{name}/load", self._load, "POST"),
        ]
        there = ", ".join(route.path for route in routes)

        async def no_route(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            path, headers = request.url.path, dict(error.headers or {})
            of_path = [x.path for x in routes if x.matches(request.scope)[0] != Match.NONE]
            if error.status_code == 405:
                message = f"expected {headers.get('Allow')} of {shown(path)}, got {request.method}"
            else:
                message = f"there is no path {shown(path)}, only {there}"
            failed = HttpError(error.status_code, message, **headers)
            return await self._answered(request, (*of_path, _UNKNOWN)[0], _raising(failed))

        app = Starlette(routes=routes, exception_handlers={HTTPException: no_route})
        app.router.redirect_slashes = False  # a redirect would be no JSON
        return app

    def _route(
        self, path: str, handler: Handler, method: str = "GET", is_open: bool = False
    ) -> Route:
        async def checked(request: Request) -> Response:
            if not is_open:
                self._check_token(request)
            return await handler(request)

        async def answer(request: Request) -> Response:
            return await self._answered(request, path, checked)

        return Route(path, answer, methods=[method])

    async def _answered(self, request: Request, path: str, handler: Handler) -> Response:
        """The response of a handler, or of its error, which is counted and logged."""
        begun = time.perf_counter()
        RequestNotes.of(request)  # they begin
        try:
            response = await handler(request)
        except HttpError as error:
            response = error_response(error)
        except UserError as error:
            RequestNotes.of(request).refused(error)
            response = error_response(HttpError(400, str(error)))
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it
        except Exception:
            _log.exception("%s %s", request.method, path)
            response = error_response(HttpError(500, "an error of the server; see its log"))
        self._metrics.requests.labels(path, response.status_code).inc()
        seconds = time.perf_counter() - begun
        self._metrics.request_seconds.labels(path).observe(seconds)
        self._log.write(request, path, response.status_code, seconds)
        return response

    def _check_token(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_same = hmac.compare_digest(given.lstrip(" ").encode(), self._token.encode())
        if self._token and not (is_same and scheme.lower() == "bearer"):
            raise HttpError(401, "expected the bearer token", **{"www-authenticate": "Bearer"})

    # -- What the server and the model are ---------------------------------------------

    async def _server(self, _: Request) -> Response:
        return json_response(
            {"name": "dlrm_jax", "version": PROTOCOL_VERSION, "extensions": [*EXTENSIONS]}
        )

    async def _live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: Request) -> Response:
        return json_response({"ready": True})

    async def _prometheus(self, _: Request) -> Response:
        self._repository.observe()
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _model(self, request: Request) -> Response:
        model = self._predictions.model(request)
        return json_response(model_metadata(self._name, self._repository.versions, model))

    async def _model_ready(self, request: Request) -> Response:
        try:
            self._predictions.model(request)
        except HttpError:  # without a token, nobody is told which there are
            raise HttpError(404, "there is no such model, or no such version of it") from None
        return await self._ready(request)

    async def _index(self, _: Request) -> Response:
        versions = self._repository.versions
        return json_response(
            [{"name": self._name, "version": x, "state": "READY"} for x in versions]
        )

    async def _load(self, request: Request) -> Response:
        self._predictions.check_name(request)
        await read_body(request, self._limits)
        found = await asyncio.to_thread(self._repository.try_refresh)
        versions = self._repository.versions
        if found.problem or found.failed:  # the reason names files
            what = found.problem or f"version {', '.join(found.failed)} can't be loaded"
            raise HttpError(
                400, f"{what}, the server's log says more; served are {', '.join(versions)}"
            )
        return json_response({"loaded": found.loaded, "versions": versions})


def _raising(error: HttpError) -> Handler:
    async def fail(_: Request) -> Response:
        raise error

    return fail
