"""Connections of clients: too many, silent ones, and those that are there at the end."""

from __future__ import annotations

import contextlib
import functools
import gc
import socket
import time
import weakref
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from clients import Client, serving

from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving import connections
from dlrm_jax.serving.http_messages import Limits
from dlrm_jax.serving.served_model import ServedModel
from dlrm_jax.serving.served_version import Observer


def test_too_many_and_silent_ones(artifact: Path):
    limits = Limits(seconds=0.4)
    with serving(artifact, limits=limits, connections=2) as client, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", client.port)
        silent, slow, third = (
            stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(3)
        )
        slow.sendall(b"GET /v2/health/live HTTP/1.1\r\n")
        refusal = HTTPResponse(third)
        refusal.begin()
        assert (refusal.status, refusal.getheader("connection")) == (503, "close")
        assert b"fewer connections" in refusal.read()
        assert third.recv(1) == b""
        for each in (silent, slow):  # given up
            assert each.recv(1) == b""
        assert client.ask("GET", "/v2/health/live")[0] == 200


def connected(stack: contextlib.ExitStack, client: Client) -> socket.socket:
    address = ("127.0.0.1", client.port)
    return stack.enter_context(socket.create_connection(address, timeout=5))


def is_refused(connection: socket.socket, status: bytes) -> bool:
    """Whether the server has closed a connection, after this status."""
    with contextlib.suppress(ConnectionResetError):  # it hasn't read what came
        found = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        return not found or status in found[:20]
    return True


def test_nothing_but_a_request_keeps_a_connection(artifact: Path):
    """Neither the rest of a body that nobody reads nor line breaks do."""
    line = b"GET /v2/health/live HTTP/1.1\r\n"
    with serving(artifact, keep_alive=1) as client, contextlib.ExitStack() as stack:
        pairs = (line + b"content-length: 9\r\n\r\n", b"x"), (line + b"\r\n", b"\r\n")
        kept = [connected(stack, client) for _ in pairs]
        for connection, (head, rest) in zip(kept, pairs, strict=True):
            connection.sendall(head)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            connection.sendall(rest)
        assert all(is_refused(connection, b"") for connection in kept)


@pytest.mark.parametrize("part", [b"a: %s\r\n" % (b"b" * 100), b"x" * 6])
def test_headers_without_end_are_refused(artifact: Path, part: bytes):
    with serving(artifact) as client, contextlib.ExitStack() as stack:
        connection = connected(stack, client)
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\na: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(part * 2000)
        assert is_refused(connection, b" 431 ")


@pytest.mark.parametrize(
    "head",
    [
        b"a: %s\r\n" % (b"x" * 65_000),
        b"a: %s\r\n" % (b"b" * 100) * 700,
        b"%s: b\r\n" % (b"x" * 70_000),
    ],
)
def test_headers_that_come_at_once_are_refused(artifact: Path, head: bytes):
    with serving(artifact) as client, contextlib.ExitStack() as stack:
        connection = connected(stack, client)
        connection.sendall(
            b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n%sx: %s\r\n\r\n" % (head, b"x" * 1000)
        )
        assert is_refused(connection, b" 431 ")
        assert client.ask("GET", "/v2/health/live", headers={"a": "x" * 64_000})[0] == 200


@pytest.mark.parametrize("trailer", [b"a: %s\r\n" % (b"b" * 100) * 300, b"a" * 30_000])
def test_what_follows_a_body_without_end_is_refused(artifact: Path, trailer: bytes):
    head = b"POST /v2/repository/index HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    with serving(artifact) as client, contextlib.ExitStack() as stack:
        connection = connected(stack, client)
        connection.sendall(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(trailer)
        assert is_refused(connection, b" 200 ")


def test_a_client_that_sends_nothing_more_is_answered(artifact: Path):
    line = b"GET /v2/health/live HTTP/1.1\r\n"
    post = b"POST /predict HTTP/1.1\r\ncontent-length: 2\r\n\r\n"
    with serving(artifact) as client, contextlib.ExitStack() as stack:
        for sent, answers in (
            (line + b"\r\n", [b" 200 "]),
            (post + b"{}", [b" 400 "]),
            (post + b"{}" + line + b"\r\n" + post + b"{}", [b" 400 ", b" 200 ", b" 400 "]),
            (line + b"\r\n" + line, [b" 200 "]),
            (line, []),
            (post + b"{", []),
            (b"", []),
        ):
            connection = connected(stack, client)
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            found = b"".join(iter(functools.partial(connection.recv, 1 << 16), b""))
            assert [x[:5] for x in found.split(b"HTTP/1.1")[1:]] == answers, sent


def test_a_client_that_reads_nothing_is_given_up(artifact: Path):
    with serving(artifact, limits=Limits(seconds=0.3)) as client, contextlib.ExitStack() as stack:
        connection = connected(stack, client)
        with contextlib.suppress(ConnectionError):
            while True:  # until buffers are full; it blocks if the server waits for ever
                connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 100)


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_request_on_its_way_is_answered_at_the_end(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connections, "_GRACE", 10)
    with serving(artifact) as client:
        connection = HTTPConnection("127.0.0.1", client.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/v2")
            assert connection.getresponse().read()
            client.server.stop()
            while is_listening(client.port):
                time.sleep(0.02)
            connection.request("GET", "/v2/health/live")
            response = connection.getresponse()
            assert (response.status, response.getheader("connection")) == (200, "close")


def test_a_version_that_has_ended_is_freed_at_once(artifact: Path):
    """Not when Python looks for cycles: mapped files take room on the disk until then."""

    def ended() -> list[weakref.ref[object]]:
        predictor = Predictor.load(artifact, batch_size=1)
        model = ServedModel("1", predictor, 1, 10, Observer())
        model.warm_up()
        model.close()
        return [weakref.ref(model), weakref.ref(predictor), weakref.ref(predictor.encoder)]

    gc.disable()
    try:
        assert [found() for found in ended()] == [None] * 3
    finally:
        gc.enable()
