"""Connections of clients: how many there may be, how long they may be silent, and how they end."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_GRACE = 0.5
"""Seconds after the end of the server within which a request that is on its way is answered."""

_FULL = b"expected fewer connections; try again later"
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(_FULL), _FULL)
)


class Connection(HttpToolsProtocol):
    """A connection of a client; `with_limits` makes the class that a server takes.

    Attributes:
        most: most connections at a time; further ones get 503 and are closed.
        seconds: seconds within which a request's headers must have come, from the connection or the
            request's first byte on.
    """

    most: int
    seconds: float

    _deadline: asyncio.TimerHandle | None = None
    _is_ending = False

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_REFUSAL)
            transport.close()
            return
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._end_deadline()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        if self._deadline is None:
            self._start_deadline()

    def on_headers_complete(self) -> None:
        """The body is next, which has a deadline of its own."""
        self._end_deadline()
        super().on_headers_complete()
        if self._is_ending:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Answers what has come and what is on its way, and closes the connection."""
        if self.cycle is None or self.cycle.response_complete:
            self._is_ending = True
            self.loop.call_later(_GRACE, self._close_if_idle)
        else:
            super().shutdown()

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.seconds, self.transport.close)

    def _end_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def with_limits(most: int, seconds: float) -> type[Connection]:
    """A class of connections.

    Args:
        most: see `Connection`.
        seconds: see `Connection`.
    """
    return type("Connection", (Connection,), {"most": most, "seconds": seconds})
