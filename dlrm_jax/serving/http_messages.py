"""What all paths of the HTTP interface share: limits, bodies, JSON, and errors with a status."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dlrm_jax.errors import cut, shown


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


class HttpError(Exception):
    """An error that the client gets.

    Attributes:
        status: status of the response.
        message: message in its body.
        headers: its headers.
    """

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


_LONGEST = 2000  # characters of a message


def error_response(error: HttpError) -> Response:
    """The response of an error."""
    content = {"error": cut(error.message, _LONGEST)}
    return json_response(content, error.status, error.headers)


def too_late(limits: Limits, **headers: str) -> HttpError:
    """The error of a request that is given up."""
    return HttpError(504, f"no answer within {limits.seconds:g} s, the deadline", **headers)


def _too_long(limits: Limits) -> HttpError:
    message = f"expected a body of at most {limits.body_bytes} bytes"
    return HttpError(413, message, connection="close")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        HttpError: it has more bytes than the limit, or says so; it is compressed; or it doesn't
            come in time.
    """
    encoding = request.headers.get("content-encoding", "")
    if encoding.lower() not in ("", "identity"):  # a few bytes may stand for any number of them
        raise HttpError(
            415,
            f"expected a body without Content-Encoding, got {shown(encoding)}; send it as it is, "
            f"uncompressed",
            **{"accept-encoding": "identity", "connection": "close"},
        )
    if int(request.headers.get("content-length", 0)) > limits.body_bytes:  # they are digits
        raise _too_long(limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_long(limits)
                parts.append(part)
    except TimeoutError:
        raise too_late(limits, connection="close") from None
    return b"".join(parts)


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A response of JSON."""
    body = msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json")
