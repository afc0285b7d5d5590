"""Connections of clients: how many there may be, how long they may be silent, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import Any

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_GRACE = 0.5
"""Seconds after the end of the server within which a request that is on its way is answered."""

_LONGEST_HEAD = 1 << 16
"""Bytes of a request before its body; the parser's time grows by the square of one header's."""


def _refusal(head: str, message: str) -> bytes:
    body = msgspec.json.encode({"error": message})
    head = (
        f"HTTP/1.1 {head}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_TOO_MANY = _refusal(
    "503 Service Unavailable\r\nretry-after: 1", "expected fewer connections; try again later"
)
_TOO_LONG = _refusal(
    "431 Request Header Fields Too Large", f"expected headers of at most {_LONGEST_HEAD} bytes"
)


class _TooLongError(Exception):
    """Ends the parser, which answers a head that is too long as it does one that is none."""


class _Flow(FlowControl):
    """Reads nothing more from a client while requests wait that it has sent without an answer.

    Args:
        transport: connection.
        waiting: requests that wait.
    """

    def __init__(self, transport: Any, waiting: Sized):
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Reads on, also when a request asks for its body: that of the last is to come at most."""
        if not self._waiting:
            super().resume_reading()


class _Ending:
    """The transport of an answer. Closed before the rest of a body has come, it waits for that.

    A client sends its whole body before it reads why nobody wants it. What comes to a closed
    connection is answered by a reset, and the client doesn't read the answer.

    Args:
        connection: connection.
    """

    def __init__(self, connection: Connection):
        self._connection, self._cycle = connection, connection.cycle
        self.write, self.is_closing = connection.transport.write, connection.transport.is_closing

    def close(self) -> None:
        """Closes the connection, or says that nothing more is answered."""
        if self._cycle.more_body:
            self._connection.read_out()
        else:
            self._connection.transport.close()


class Connection(HttpToolsProtocol):
    """A connection of a client; `with_limits` makes the class that a server takes.

    Attributes:
        most: most connections at a time; further ones get 503 and are closed.
        seconds: seconds within which a request's headers must have come, from the connection or the
            request's first byte on; and in which a client must take something of its answers.
    """

    most: int
    seconds: float

    _deadline: asyncio.TimerHandle | None = None
    _taken: asyncio.TimerHandle | None = None  # by which something of the answers must be
    _unused = 0  # bytes since the last that completed a head, or were of a body
    _is_ending = False
    _is_unread = False  # what still comes

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        transport.set_write_buffer_limits(0)  # so that `pause_writing` reports any bytes that wait
        if len(self.connections) > self.most:
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._end_deadline()
        self.resume_writing()
        super().connection_lost(exc)
        if self.cycle:
            self.cycle.transport = self.transport  # so that both are freed at once

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        if self._is_unread:
            return
        silent = self.timeout_keep_alive_task
        self._unused += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unused > _LONGEST_HEAD:
            self._refuse_head()
        elif silent and self._deadline is None and self.cycle.response_complete:
            # Line breaks, or the rest of a body that nobody reads: no request has begun.
            self.timeout_keep_alive_task = self.loop.call_at(
                silent.when(), self.timeout_keep_alive_handler
            )

    def pause_writing(self) -> None:
        """The client doesn't take its answers as fast as they are there."""
        super().pause_writing()
        self._watch_taken()

    def resume_writing(self) -> None:
        """The client has taken its answers."""
        if self._taken:
            self._taken.cancel()
            self._taken = None
        super().resume_writing()

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        if self._deadline is None:
            self._start_deadline()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has come. Those behind a body, which nobody reads, aren't kept."""
        if self._deadline:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The body is next, which has a deadline of its own."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > _LONGEST_HEAD:
            self._unused = size
            raise _TooLongError
        self._end_deadline()
        self._unused = 0
        super().on_headers_complete()
        self.cycle.transport = _Ending(self)  # pyright: ignore[reportAttributeAccessIssue]
        if self._is_ending:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of the body has come."""
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come."""
        self._unused = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuses what isn't HTTP, or what a callback of the parser has refused."""
        if self._unused > _LONGEST_HEAD:
            self._refuse_head()
        else:
            self.transport.write(_refusal("400 Bad Request", msg))
            self.transport.close()

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The client sends nothing more; what it has asked for is answered first, if that is whole.

        Returns:
            Whether the connection stays open for the answer.
        """
        cycle = self.cycle
        if self._is_unread or cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False  # of the last request, behind which nothing comes
        return True

    def read_out(self) -> None:
        """Answers nothing more, and ends when the client does, or in time."""
        if self._is_unread:
            return
        self._is_unread = True
        self.transport.write_eof()
        self._start_deadline()

    def shutdown(self) -> None:
        """Answers what has come and what is on its way, and closes the connection."""
        if self.cycle is None or self.cycle.response_complete:
            self._is_ending = True
            self.loop.call_later(_GRACE, self._close_if_idle)
        else:
            super().shutdown()

    def _unsupported_upgrade_warning(self) -> None:
        """Says nothing: a request to upgrade is answered as if it hadn't asked, as HTTP allows."""

    def _watch_taken(self, before: int | None = None) -> None:
        """Ends the connection if nothing of the answers is taken in time."""
        waiting = self.transport.get_write_buffer_size()
        if waiting == before:
            self.transport.abort()
        else:
            self._taken = self.loop.call_later(self.seconds, self._watch_taken, waiting)

    def _refuse_head(self) -> None:
        """Refuses headers that are too long; silently, if there is an answer before that one."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_TOO_LONG)
        self.transport.close()

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
