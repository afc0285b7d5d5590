"""Connections of clients: too many, silent ones, and those that are there at the end."""

from __future__ import annotations

import contextlib
import gc
import socket
import time
import weakref
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from clients import serving

from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving import connections
from dlrm_jax.serving.http_messages import Limits
from dlrm_jax.serving.served_model import Observer, ServedModel


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
