"""Requests that take longer than they may are given up, whatever takes the time."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from clients import serving

from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving import prediction
from dlrm_jax.serving.http_messages import Limits


def test_a_body_that_does_not_come_is_given_up(artifact: Path):
    with serving(artifact, limits=Limits(seconds=0.3)) as client:
        connection = HTTPConnection("127.0.0.1", client.port, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/predict")
            connection.putheader("content-length", "100")
            connection.endheaders(b"{")
            response = connection.getresponse()
            assert (response.status, response.getheader("connection")) == (504, "close")


def test_an_end_that_only_connections_outlast_is_no_error(
    artifact: Path, caplog: pytest.LogCaptureFixture
):
    """A client may go on sending for a while when it has its answer; nobody waits for it."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.socket())
        client = stack.enter_context(serving(artifact, limits=Limits(seconds=1.2)))
        connection.settimeout(20)
        connection.connect(("127.0.0.1", client.port))
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx")
        time.sleep(0.1)
        client.server.stop()
        assert connection.recv(100).startswith(b"HTTP/1.1 504")
    assert client.server.unanswered == 0
    assert "running task" not in caplog.text


@pytest.mark.parametrize("stage", ["read_rows", "encoded"])
def test_the_deadline_counts_from_the_end_of_the_body(
    artifact: Path, stage: str, monkeypatch: pytest.MonkeyPatch
):
    """Also while rows are read, and mapped to ids."""
    encoder = Predictor.load(artifact).encoder
    frame = pl.read_csv(Path(__file__).parents[1] / "previous" / "raw.csv", n_rows=1)
    (row,) = frame.select(encoder.columns).to_dicts()
    ended, own = threading.Event(), getattr(prediction, stage)

    def slow(*arguments: Any) -> Any:
        ended.wait(10)
        return own(*arguments)

    with serving(artifact, limits=Limits(seconds=0.3)) as client:
        rows = json.dumps({"rows": [row]}).encode() + b" " * 20_000
        assert client.ask("POST", "/predict", rows)[0] == 200
        monkeypatch.setattr(prediction, stage, slow)
        status, found, _ = client.ask("POST", "/predict", rows)
        assert (status, found) == (504, {"error": "no answer within 0.3 s, the deadline"})
        assert not ended.is_set()
        ended.set()
