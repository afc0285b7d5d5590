"""A server of a model: its loaded versions, its HTTP interface, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from dlrm_jax.errors import UserError
from dlrm_jax.serving.app import App
from dlrm_jax.serving.connections import with_limits
from dlrm_jax.serving.model_kind import ModelKind
from dlrm_jax.serving.options import Options
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.request_log import RequestLog
from dlrm_jax.serving.row_models import RowModels
from dlrm_jax.serving.served_version import ServedVersion
from dlrm_jax.serving.server_metrics import ServerMetrics
from dlrm_jax.serving.versions import Version
from dlrm_jax.signals import end_process


class _Uvicorn(uvicorn.Server):
    """A server of HTTP that the second signal ends at once.

    Args:
        config: its settings.
        seconds: seconds after its end was asked for within which it answers what has come.
    """

    unanswered = 0  # requests, when it has ended

    def __init__(self, config: uvicorn.Config, seconds: float):
        super().__init__(config)
        self._seconds = seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end at the first signal."""
        if self._captured_signals:
            count = len(self.server_state.tasks)
            end_process(sig, f"; {unanswered(count)}" if count else "")
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what has come, in time."""
        # A limit of its own: uvicorn's logs an error even if nothing but connections are left.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await super().shutdown(sockets)
        tasks = [*self.server_state.tasks]
        self.unanswered = len(tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)  # their clients get 500
        for connection in [*self.server_state.connections]:
            connection.transport.abort()  # the event loop would wait for it


def unanswered(count: int) -> str:
    """What is said of requests that weren't answered when a server ended."""
    if not count:
        return "all requests are answered"
    return "1 request wasn't answered" if count == 1 else f"{count} requests weren't answered"


class Server:
    """Loads the newest versions in a directory, and answers requests.

    Args:
        directory: artifact, or directory of artifacts named by numbers.
        options: settings of the server.
        kind: kind of the models, made of the settings and counters of the server.

    Raises:
        UserError: there is no artifact, or none can be loaded; the schedule is none, or
            names a feature that the model doesn't have.
    """

    def __init__(
        self,
        directory: Path,
        options: Options,
        kind: Callable[[Options, ServerMetrics], ModelKind] = RowModels,
    ):
        self._options = options
        self._metrics = ServerMetrics(options.name, options.drift_rows)
        self._kind = kind(options, self._metrics)
        self.repository = Repository(
            directory, self._load, options.versions, self._kind.forget, self._kind.table_paths
        )
        try:
            self._kind.check()
        except BaseException:
            self.repository.close()
            raise
        self._log = RequestLog(options.log_requests)
        app = App(
            options.name,
            self.repository,
            self._kind.answers(self.repository),
            options.limits,
            self._metrics,
            options.token,
            self._log,
        )
        self._ended = threading.Event()
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app.routes(),
                log_config=None,
                access_log=False,
                lifespan="off",
                http=with_limits(options.connections, options.limits.seconds),
                timeout_keep_alive=options.keep_alive,
            ),
            options.limits.seconds + 1,
        )

    def run(self, listener: socket.socket) -> None:
        """Answers requests until a signal, or `stop`; then those that have come, and returns.

        Args:
            listener: socket that listens, see `listen`.
        """
        if self._options.watch_seconds:
            watch = functools.partial(
                self.repository.watch, self._options.watch_seconds, self._ended
            )
            threading.Thread(target=watch, name="watch", daemon=True).start()
        try:
            self._uvicorn.run(sockets=[listener])
        finally:
            self._ended.set()
            self.repository.close()
            self._log.end()

    @property
    def unanswered(self) -> int:
        """The number of requests that weren't answered when `run` ended."""
        return self._uvicorn.unanswered

    def stop(self) -> None:
        """Ends `run` from another thread."""
        self._uvicorn.should_exit = True

    def _load(self, version: Version) -> ServedVersion[Any]:
        return self._kind.load(version)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: address of this machine.
        port: port; 0 for a free one.

    Raises:
        UserError: the port is taken, or the address isn't one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"host, port: cannot listen on {host}:{port}: {error}; another server may have the "
            f"port, and 0 takes a free one"
        ) from error
