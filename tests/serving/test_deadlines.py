"""Requests that take longer than they may are given up, whatever takes the time."""

from __future__ import annotations

import contextlib
import json
import threading
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
            assert connection.getresponse().status == 504


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
