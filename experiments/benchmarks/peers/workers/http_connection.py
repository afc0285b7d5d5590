"""A connection of an HTTP client that stays, for benchmarks: it costs little."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools

LOST = 0
"""What is in place of a status if the connection ends before an answer."""

Answered = Callable[[int, bytes], None]
"""A function of status and body."""


class Connection(asyncio.Protocol):
    """A connection that has at most one request under way."""

    def __init__(self):
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answered: Answered | None = None  # while a request is under way
        self._transport: Any  # uvloop's is no asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    def send(self, request: bytes, answered: Answered) -> None:
        """Sends a request; the function is called with its answer."""
        self._answered, self._body = answered, []
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._end(self._parser.get_status_code(), b"".join(self._body))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._end(LOST, b"")

    def _end(self, status: int, body: bytes) -> None:
        answered, self._answered = self._answered, None
        if answered:
            answered(status, body)

    def close(self) -> None:
        """Closes it."""
        self._transport.close()
