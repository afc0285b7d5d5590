"""The log of requests: a line for each, or for a share of them, without the values of features."""

from __future__ import annotations

import functools
import logging
import random
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from dlrm_jax.errors import UserError, cut
from dlrm_jax.serving.line_limit import LineLimit

REQUEST_ID = "x-request-id"
"""The HTTP header with the id of a request."""

_log = logging.getLogger("dlrm_jax.requests")

_KEY = "dlrm_jax.notes"
_LONGEST_ID = 128
_LONGEST_REASON = 300


class RequestNotes:
    """What is known of a request while it is answered.

    Attributes:
        rows: number of rows; None before it is known.
        version: version of the model that answers; None if none does.
        stages: milliseconds of each stage.
        reason: the expectation that a request with 400 doesn't meet; None if there is none.
    """

    def __init__(self, request: Request):
        self._request = request
        self.rows: int | None = None
        self.version: str | None = None
        self.reason: str | None = None
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    @classmethod
    def of(cls, request: Request) -> RequestNotes:
        """The notes of a request, which begin with the first call."""
        notes = request.scope.get(_KEY)
        if notes is None:
            notes = request.scope[_KEY] = cls(request)
        return notes

    @functools.cached_property
    def id(self) -> str:
        """The id that the client gave; empty if none. That of a body takes the header's place."""
        header = self._request.headers.get(REQUEST_ID, "")  # Latin-1, says HTTP; clients send UTF-8
        return header.encode("latin-1").decode("utf-8", "surrogateescape")

    def refused(self, error: UserError) -> None:
        """Notes why a request is refused, without what came: that may be a value of a feature."""
        text = re.split(", got |, as row ", str(error))[0]
        if "expected" in text:
            self.reason = cut(text, _LONGEST_REASON)

    def ended(self, stage: str) -> None:
        """Notes the time since the last stage."""
        now = time.perf_counter()
        self.stages[stage], self._last = 1000 * (now - self._last), now


class RequestLog:
    """Writes lines about requests to the logger ``dlrm_jax.requests``.

    Those that fail are always written, up to 100 a second; the next line, or `end`, says how many
    weren't.

    Args:
        share: share of the other requests that are written, drawn at random.
        clock: seconds, ascending.
    """

    def __init__(self, share: float = 0.0, clock: Callable[[], float] = time.monotonic):
        self._share, self._limit = share, LineLimit(clock)

    def write(self, request: Request, path: str, status: int, seconds: float) -> None:
        """Writes a line about an answered request.

        Args:
            request: request.
            path: path of its route, without what the client has put into it.
            status: status of the response.
            seconds: seconds that it took.
        """
        failed = status >= 400
        if failed and not self._limit.has_room():
            return
        if not failed and (not self._share or random.random() >= self._share):
            return
        notes = RequestNotes.of(request)
        fields: dict[str, Any] = {
            "id": notes.id[:_LONGEST_ID] or secrets.token_hex(8),
            "method": request.method,
            "path": path,
            "status": status,
            "rows": notes.rows,
            "version": notes.version,
            "reason": notes.reason,
            "ms": {x: round(ms, 3) for x, ms in (*notes.stages.items(), ("total", 1000 * seconds))},
        }
        fields |= self._limit.left_out()
        level = logging.ERROR if status >= 500 else logging.WARNING if failed else logging.INFO
        known = {name: value for name, value in fields.items() if value is not None}
        _log.log(level, "request", extra={"fields": known})

    def end(self) -> None:
        """Writes how many failed requests weren't written since the last line."""
        self._limit.end(_log)
