"""Lines about requests: what they say and don't, which are written, and how."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from test_server import serving

from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving import line_limit, log_format
from dlrm_jax.serving.log_format import JsonFormatter, TextFormatter
from dlrm_jax.serving.request_log import RequestLog


def request_of(request_id: str = "7") -> Request:
    headers = [(b"x-request-id", request_id.encode())]
    return Request({"type": "http", "method": "GET", "path": "/v2", "headers": headers})


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return record.__dict__["fields"]


def test_what_a_server_says_of_requests(artifact: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    columns = Predictor.load(artifact, batch_size=16).encoder.columns
    row = dict.fromkeys(columns) | {"page": "a secret value"}
    with serving(artifact, log_requests=1, token="the token") as client:
        headers = {"authorization": "Bearer the token", "x-request-id": "7"}
        for rows in ([row] * 3, [row | {"age": "a secret text"}]):
            client.ask("POST", "/predict", {"rows": rows}, headers)
        client.ask("GET", "/v2/models/another", headers=headers)
        client.ask("GET", "/v2", headers={"x-request-id": "x" * 1000})
    records = [x for x in caplog.records if x.name == "dlrm_jax.requests"]
    good, bad, unknown, without = map(fields_of, records)
    stages = good.pop("ms")
    version = good.pop("version")
    assert good == {"id": "7", "method": "POST", "path": "/predict", "status": 200, "rows": 3}
    assert list(stages) == ["read", "prepare", "queue", "compute", "total"]
    assert 0 < sum(stages.values()) - stages["total"] < 1.1 * stages["total"]
    assert version.isdecimal()
    assert (bad["status"], bad["path"]) == (400, "/predict")
    reason = "rows (from 0), row 0, column age: expected a finite number of float32 or nothing"
    assert bad["reason"] == reason
    assert (unknown["status"], unknown["path"]) == (404, "/v2/models/{name}")
    assert (without["status"], without["id"]) == (401, "x" * 128)
    assert [x.levelname for x in records] == ["INFO", "WARNING", "WARNING", "WARNING"]
    lines = "\n".join(
        form.format(x) for x in records for form in (JsonFormatter(), TextFormatter())
    )
    assert "secret" not in lines
    assert "token" not in lines


def test_failures_are_written_and_a_share_of_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(random, "random", random.Random(1).random)
    now = [0.0]
    log = RequestLog(0.1, lambda: now[0])
    for _ in range(1000):
        log.write(request_of(), "/v2", 200, 0.001)
    assert 70 < len(caplog.records) < 130
    caplog.clear()
    for _ in range(150):
        log.write(request_of(), "/v2", 500, 0.001)
    assert len(caplog.records) == 100
    now[0] += 1
    log.write(request_of(), "/v2", 500, 0.001)
    assert fields_of(caplog.records[-1])["left_out"] == 50
    assert caplog.records[-1].levelname == "ERROR"
    for _ in range(101):
        log.write(request_of(), "/v2", 400, 0.001)
    caplog.clear()
    for _ in range(2):
        log.end()
    (record,) = caplog.records
    assert TextFormatter().format(record).endswith(" warning lines were left out left_out=2")
    caplog.clear()
    RequestLog().write(request_of(), "/v2", 200, 0.001)
    assert not caplog.records


def test_lines_as_json_and_as_text(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    forged = '1\n2026-11-01T00:00:00.000Z info "é'
    RequestLog(1).write(request_of(forged), "/v2", 200, 0.0015)
    (record,) = caplog.records
    record.created = 1_800_000_000.5
    assert json.loads(JsonFormatter().format(record)) == {
        "time": "2027-01-15T08:00:00.500Z", "level": "info", "logger": "dlrm_jax.requests",
        "message": "request", "id": forged, "method": "GET", "path": "/v2", "status": 200,
        "ms": {"total": 1.5},
    }  # fmt: skip
    assert TextFormatter().format(record) == (
        f"2027-01-15T08:00:00.500Z info request id={json.dumps(forged)} method=GET path=/v2 "
        "status=200 ms.total=1.5"
    )
    plain = logging.makeLogRecord(
        {"msg": "serving version %s", "args": ("2",), "levelname": "INFO"}
    )
    assert TextFormatter().format(plain).endswith("Z info serving version 2")


@contextlib.contextmanager
def configured_log() -> Iterator[None]:
    loggers = [logging.getLogger(x) for x in ("dlrm_jax", "uvicorn", "py.warnings")]
    before = [(x, [*x.handlers], x.propagate, x.level) for x in loggers]
    try:
        log_format.configure("json")
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def test_clients_cannot_fill_the_log(artifact: Path, capsys: pytest.CaptureFixture[str]):
    """With what is no HTTP, and what asks for another protocol."""
    with serving(artifact) as client, configured_log():
        upgrade = {"connection": "upgrade", "upgrade": "websocket"}
        assert client.ask("GET", "/v2", headers=upgrade)[0] == 200
        started, asked = time.monotonic(), 250
        for _ in range(asked):
            with socket.create_connection(("127.0.0.1", client.port)) as bad:
                bad.sendall(b"x\r\n\r\n")
                assert bad.recv(20).startswith(b"HTTP/1.1 400")
        seconds = time.monotonic() - started
        time.sleep(1)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("of a library", RuntimeWarning, stacklevel=1)
        logging.getLogger("uvicorn.error").warning("the last")
    *lines, warning, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert {x["message"] for x in lines} == {"Invalid HTTP request received."}
    assert len(lines) <= 100 * (int(seconds) + 2)
    assert len(lines) + sum(x.get("left_out", 0) for x in (*lines, last)) == asked
    assert "RuntimeWarning: of a library" in warning["message"]


def test_the_end_of_a_server_counts_what_was_left_out(
    artifact: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(line_limit, "_MOST", 0)
    with serving(artifact) as client:
        for _ in range(3):
            assert client.ask("GET", "/none")[0] == 404
    records = [x for x in caplog.records if x.name == "dlrm_jax.requests"]
    assert [fields_of(x) for x in records] == [{"left_out": 3}]


def test_the_end_counts_what_libraries_have_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(line_limit, "_MOST", 1)
    with configured_log():
        for _ in range(4):
            logging.getLogger("uvicorn.error").warning("what a client causes")
        log_format.end()
    *_, last = lines = [json.loads(x) for x in capsys.readouterr().err.splitlines()]
    assert last["message"] == "lines were left out"
    assert len(lines) - 1 + sum(x.get("left_out", 0) for x in lines) == 4
