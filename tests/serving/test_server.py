"""A real server and real clients: predictions, errors, limits, and versions that are replaced."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from clients import Client, serving

from dlrm_jax.errors import UserError
from dlrm_jax.inference.artifact_scorer import ArtifactScorer
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.http_messages import Limits
from dlrm_jax.serving.served_model import ServedModel
from dlrm_jax.serving.served_version import ServedVersion
from dlrm_jax.serving.server import Server, listen
from dlrm_jax.serving.versions import Version


@pytest.fixture(scope="module")
def client(artifact: Path) -> Iterator[Client]:
    limits = Limits(body_bytes=20_000, rows=40)
    with serving(artifact, limits=limits) as client:
        yield client


@pytest.fixture(scope="module")
def rows(artifact: Path) -> list[dict[str, Any]]:
    """Raw rows like those of training."""
    encoder = Predictor.load(artifact, batch_size=16).encoder
    frame = pl.read_csv(Path(__file__).parents[1] / "previous" / "raw.csv", n_rows=30)
    return frame.select(encoder.columns).to_dicts()


def test_raw_rows_get_the_predictions_of_the_artifact(
    client: Client, artifact: Path, rows: list[dict[str, Any]]
):
    expected = Predictor.load(artifact, batch_size=16).predict(rows)
    status, found = client.predict(rows)
    assert status == 200
    np.testing.assert_allclose(found["predictions"], expected, rtol=1e-6)


def test_many_clients_get_each_their_own(
    client: Client, artifact: Path, rows: list[dict[str, Any]]
):
    expected = Predictor.load(artifact, batch_size=16).predict(rows)
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        found[i] = client.predict([rows[i], {}] if i % 7 == 3 else [rows[i]])

    threads = [threading.Thread(target=ask, args=[i]) for i in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (status, answer) in found.items():
        if i % 7 == 3:
            assert status == 400
        else:
            np.testing.assert_allclose(answer["predictions"], expected[i : i + 1], rtol=1e-6)


def test_a_malformed_row_fails_its_request_alone(client: Client, rows: list[dict[str, Any]]):
    name = client.ask("GET", "/v2/models/small")[1]["inputs"][0]["name"]
    cases = [
        ({"rows": [rows[0] | {name: "x"}]}, 400, f"row 0, column {name}: expected a finite number"),
        ({"rows": [rows[0] | {name: True}]}, 400, f"row 0, column {name}: expected a number or"),
        ({"rows": [rows[0], {name: 1}]}, 400, "row 1: it has no column"),
        ({"rows": []}, 400, "expected at least one row"),
        ({"row": []}, 400, 'expected {"rows"'),
        (b"[" * 10_000, 400, 'expected {"rows"'),
        (b"\xff", 400, 'expected {"rows"'),
        (b'{"rows": [{"a": "\xff"}]}', 400, 'expected {"rows"'),
        ({"rows": rows[:1] * 41}, 413, "expected at most 40 rows, got 41"),
        (b" " * 8_000_000, 413, "expected a body of at most 20000 bytes"),  # all of which comes
    ]
    for body, expected, message in cases:
        status, found, _ = client.ask("POST", "/predict", body)
        assert (status, message in found["error"]) == (expected, True), found


def test_metadata_health_and_metrics(client: Client, rows: list[dict[str, Any]]):
    assert client.ask("GET", "/v2/health/live")[:2] == (200, {"live": True})
    assert client.ask("GET", "/v2/models/small/ready")[0] == 200
    assert client.ask("GET", "/v2/models/other")[0] == 404
    assert client.ask("GET", "/v2/models/small/versions/7")[0] == 404
    assert client.ask("GET", "/nothing")[0] == 404
    client.predict(rows[:1])
    text = client.ask("GET", "/metrics")[1].decode()
    assert 'dlrm_jax_requests_total{path="/predict",status="200"}' in text
    assert 'dlrm_jax_values_total{column="' in text


def tensors(rows: list[dict[str, Any]], metadata: Any, binary: bool) -> tuple[bytes, bytes]:
    """The JSON of a request with a tensor for each column, and the bytes behind it."""
    inputs, behind = [], b""
    for given in metadata["inputs"]:
        values = [row[given["name"]] for row in rows]
        tensor = {"name": given["name"], "datatype": given["datatype"], "shape": [len(rows)]}
        if given["datatype"] == "FP32":
            numbers = np.array([np.nan if x is None else x for x in values], "<f4")
            data, part = numbers.tolist(), numbers.tobytes()
        else:
            data = ["" if x is None else str(x) for x in values]
            texts = [x.encode() for x in data]
            part = b"".join(len(x).to_bytes(4, "little") + x for x in texts)
        tensor |= {"parameters": {"binary_data_size": len(part)}} if binary else {"data": data}
        behind += part if binary else b""
        inputs.append(tensor)
    request = {"id": "7", "inputs": inputs, "parameters": {"binary_data_output": binary}}
    return json.dumps(request).encode(), behind


@pytest.mark.parametrize("binary", [False, True])
def test_the_open_inference_protocol(
    client: Client, artifact: Path, rows: list[dict[str, Any]], binary: bool
):
    metadata = client.ask("GET", "/v2/models/small")[1]
    if any(len(x["shape"]) > 1 for x in metadata["inputs"]):
        pytest.fail("this test has no bags")
    complete = [row for row in rows if all(row[x["name"]] is not None for x in metadata["inputs"])]
    head, behind = tensors(complete, metadata, binary)
    headers = {"inference-header-content-length": str(len(head))} if binary else {}
    status, found, got = client.ask("POST", "/v2/models/small/infer", head + behind, headers)
    assert status == 200, found
    if binary:
        length = int(got["inference-header-content-length"])
        found, data = json.loads(found[:length]), found[length:]
        found["outputs"][0]["data"] = np.frombuffer(data, "<f8")
    assert (found["model_name"], found["id"]) == ("small", "7")
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == (
        "probability", "FP64", [len(complete)],
    )  # fmt: skip
    expected = Predictor.load(artifact, batch_size=16).predict(complete)
    np.testing.assert_allclose(output["data"], expected, rtol=1e-6)


def test_requests_of_another_shape_are_refused_alone(client: Client):
    dense = {"name": "dense", "datatype": "FP32", "shape": [1, 2], "data": [[1.0, 2.0]]}
    width = len(client.ask("GET", "/v2/models/small")[1]["inputs"])
    ids = {"name": "ids", "datatype": "INT32", "shape": [1, width], "data": [[1] * width]}
    for inputs, message in (
        ([dense, ids], "input ids: expected INT32 or INT64 [N, "),
        ([dense | {"data": [[1.0], [2.0]]}, ids], "expected 1 lists of 2 values"),
        ([dense | {"shape": [10**9] * 3}, ids], "expected a shape such as"),
        ([dense | {"shape": [0, 10**30]}, ids], "expected a shape such as"),
        ([dense | {"shape": [0, 2], "data": []}, ids], "expected at least one row, got none"),
        ([dense | {"datatype": "FP31"}], "expected a datatype of"),
        ([dense, dense], "'dense' is there twice"),
        ([ids], "'dense' is missing"),
    ):
        status, found, _ = client.ask("POST", "/v2/models/small/infer", {"inputs": inputs})
        assert (status, message in found["error"]) == (400, True), found
    wide = dense | {"shape": [2**31 - 1, 0], "data": []}  # no bytes, and the rows of a list each
    status, found, _ = client.ask("POST", "/v2/models/small/infer", {"inputs": [wide, ids]})
    assert (status, found) == (413, {"error": "expected at most 40 rows, got 2147483647"})
    body = b'{"inputs": [{"name": "\xff"}]}'
    assert client.ask("POST", "/v2/models/small/infer", body)[0] == 400


@pytest.mark.parametrize(
    ("path", "header", "body"),
    [
        *(
            (path, ("content-length", "20001"), b"{")
            for path in ("predict", "v2/models/small/infer", "v2/repository/models/small/load")
        ),
        ("predict", ("transfer-encoding", "chunked"), b"4e21\r\n" + b" " * 20_001),
    ],
)
def test_a_body_that_is_too_long_is_refused_before_all_of_it_has_come(
    client: Client, path: str, header: tuple[str, str], body: bytes
):
    """The deadline is 10 s. What comes afterwards is no other request."""
    connection = HTTPConnection("127.0.0.1", client.port, timeout=5)
    with contextlib.closing(connection):
        connection.putrequest("POST", f"/{path}")
        connection.putheader(*header)
        connection.endheaders(body)
        assert connection.sock is not None
        with connection.sock.dup() as behind:
            response = connection.getresponse()
            assert (response.status, response.getheader("connection")) == (413, "close")
            assert b"expected a body of at most 20000 bytes" in response.read()
            behind.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
            assert behind.recv(1) == b""


def test_a_token_is_asked_for(artifact: Path):
    with serving(artifact, token="secret") as client:
        assert client.ask("GET", "/v2/health/ready")[0] == 200
        for headers in (
            {},
            {"authorization": "Bearer secre"},
            {"authorization": "Bearer sécret"},
            {"authorization": "Basic secret"},
        ):
            assert client.ask("GET", "/v2/models/small", headers=headers)[0] == 401
        for scheme in ("Bearer", "bearer", "BEARER "):
            headers = {"authorization": f"{scheme} secret"}
            assert client.ask("GET", "/v2", headers=headers)[0] == 200


def programs_of(client: Client) -> Any:
    newest = client.server.repository.newest
    assert isinstance(newest, ServedModel)
    scorer = newest.predictor.scorer
    assert isinstance(scorer, ArtifactScorer)
    return scorer.artifact.programs


def test_versions_are_replaced_under_load(
    artifact: Path, tmp_path: Path, rows: list[dict[str, Any]]
):
    shutil.copytree(artifact, tmp_path / "1")
    with serving(tmp_path) as client:
        programs = programs_of(client)
        answers: list[tuple[int, Any]] = []
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                answers.append(client.predict(rows[:2]))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            path = "/v2/repository/models/small/load"
            shutil.copytree(artifact, tmp_path / "2")
            assert client.ask("POST", path)[:2] == (200, {"loaded": ["2"], "versions": ["2"]})
            assert programs_of(client) == programs, "compiled again"
            (tmp_path / "3").mkdir()
            (tmp_path / "3" / "manifest.json").write_text("{")
            status, found, _ = client.ask("POST", path)
            assert status == 400
            assert found["error"] == (
                "version 3 can't be loaded, the server's log says more; served are 2"
            )
            assert str(tmp_path) not in found["error"]
            time.sleep(0.2)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert {status for status, _ in answers} == {200}
    assert len({json.dumps(answer) for _, answer in answers}) <= 2


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OverflowError("too large"), "OverflowError: too large"),
        (pl.exceptions.PanicException("index out of bounds"), "PanicException: index out"),
        (UserError("no model"), "no model"),
    ],
)
def test_no_failure_of_a_version_ends_watching(
    artifact: Path,
    tmp_path: Path,
    failure: BaseException,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """It is logged once, and answered as JSON, and the next version is served."""
    load = Server._load

    def fail(server: Server, version: Version) -> ServedVersion[Any]:
        if version.name == "2":
            raise failure
        return load(server, version)

    def tried() -> list[logging.LogRecord]:
        return [x for x in caplog.records if "version 2 can't be loaded" in x.getMessage()]

    monkeypatch.setattr(Server, "_load", fail)
    shutil.copytree(artifact, tmp_path / "models" / "1")
    with serving(tmp_path / "models", watch_seconds=0.02) as client:
        shutil.copytree(artifact, tmp_path / "2")
        (tmp_path / "2").rename(tmp_path / "models" / "2")
        waited(lambda: bool(tried()))
        status, found, _ = client.ask("POST", "/v2/repository/models/small/load")
        assert (status, found["error"][-12:]) == (400, "served are 1")
        (record,) = tried()
        assert message in record.getMessage()
        assert bool(record.exc_info) == (not isinstance(failure, UserError))
        shutil.copytree(artifact, tmp_path / "3")
        (tmp_path / "3").rename(tmp_path / "models" / "3")
        waited(lambda: client.server.repository.versions == ["3"])


def waited(until: Callable[[], bool]) -> None:
    """Waits until something is so; the test fails if it never is."""
    end = time.monotonic() + 20
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ports_that_are_taken():
    with listen("127.0.0.1", 0) as listener, pytest.raises(Exception, match="cannot listen on"):
        listen("127.0.0.1", listener.getsockname()[1])
