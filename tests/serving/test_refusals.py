"""What isn't answered is refused in JSON, with the reason: paths, methods, encodings, tokens."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Client, serving
from in_memory import InMemory
from test_export import config_of

from dlrm_jax.serving.export import export

ROW = {"age": 3, "page": "p1", "city": "c3", "word": None}
BODY = json.dumps({"rows": [ROW]}).encode()


@pytest.fixture(scope="module")
def client(artifact: Path) -> Iterator[Client]:
    with serving(artifact) as client:
        yield client


def test_other_paths_and_methods(client: Client, caplog: pytest.LogCaptureFixture):
    for method, path, status, message in (
        ("GET", "/v2/models/small/config", 404, "there is no path '/v2/models/small/config', only"),
        ("GET", "/v2/models/stats", 404, "there is no model 'stats', only 'small'"),
        ("GET", "/v2/models/small/versions/6/stats", 404, "there is no path '/v2/models/small/ver"),
        (
            "POST",
            "/predict/",
            404,
            "there is no path '/predict/', only /predict, /v2/models/{name}",
        ),
        ("GET", "/predict", 405, "expected POST of '/predict', got GET"),
        ("PUT", "/v2/models/small/infer", 405, "expected POST of '/v2/models/small/infer', got"),
    ):
        got, found, headers = client.ask(method, path)
        assert (got, message in found["error"]) == (status, True), found
        assert status == 404 or headers["allow"] == "POST"
    text = client.ask("GET", "/metrics")[1].decode()
    for path, status, count in (
        ("unknown", 404, 3),
        ("/predict", 405, 1),
        ("/v2/models/{name}/infer", 405, 1),
    ):
        assert f'requests_total{{path="{path}",status="{status}"}} {count}.0' in text
    assert 'path="unknown",status="405"' not in text
    fields = [x.__dict__["fields"] for x in caplog.records if x.name == "dlrm_jax.requests"]
    assert [x["path"] for x in fields].count("unknown") == 3


def test_null_among_encoded_features(client: Client):
    dense = {"name": "dense", "datatype": "FP32", "shape": [2, 1], "data": [[1.0], [None]]}
    ids = {"name": "ids", "datatype": "INT32", "shape": [2, 3], "data": [[1, None, 1]] * 2}
    status, found, _ = client.ask("POST", "/v2/models/small/infer", {"inputs": [dense, ids]})
    assert status == 400
    assert "row 1 (from 0) isn't finite: dense feature number 0 (from 0) is NaN" in found["error"]
    dense["data"] = [1.0, 2.0]
    assert client.ask("POST", "/v2/models/small/infer", {"inputs": [dense, ids]})[0] == 200


@pytest.mark.parametrize("path", ["predict", "v2/models/small/infer"])
def test_compressed_bodies(client: Client, path: str):
    bodies = {"gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY), "GZIP, br": b"x"}
    for encoding, body in bodies.items():
        headers = {"content-encoding": encoding, "inference-header-content-length": "70"}
        status, found, got = client.ask("POST", f"/{path}", body, headers)
        assert (status, got["accept-encoding"]) == (415, "identity")
        assert found["error"] == (
            f"expected a body without Content-Encoding, got {encoding!r}; send it as it is, "
            f"uncompressed"
        )
    assert client.ask("POST", "/predict", BODY, {"content-encoding": "identity"})[0] == 200


def test_what_is_no_http(client: Client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(b"HELLO\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body) == {"error": "Invalid HTTP request received."}


def test_readiness_of_a_model_needs_no_token(artifact: Path):
    """Nor does it tell names."""
    with serving(artifact, token="secret") as client:
        for path in ("small", "small/versions/6"):
            assert client.ask("GET", f"/v2/models/{path}/ready")[:2] == (200, {"ready": True})
            assert client.ask("GET", f"/v2/models/{path}")[0] == 401
        for path in ("other", "small/versions/7"):
            status, found, _ = client.ask("GET", f"/v2/models/{path}/ready")
            assert status == 404
            assert found == {"error": "there is no such model, or no such version of it"}


def test_columns_of_another_version_are_told(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    shutil.copytree(artifact, tmp_path / "1")
    with serving(tmp_path) as client:
        caplog.set_level(logging.WARNING)
        refresh = client.server.repository.refresh
        shutil.copytree(artifact, tmp_path / "2")
        assert refresh().loaded == ["2"]
        assert caplog.messages == []
        export(InMemory.of(config_of("dlrm")), tmp_path / "3", "small", "float32")
        assert refresh().loaded == ["3"]
        (message,) = caplog.messages
        assert message == (
            "version 3 takes other columns than version 2: 'dense' is new, 'ids' is new, 'age' is "
            "gone, 'page' is gone, 'city' is gone, 'word' is gone; requests for the old ones may "
            "get 400"
        )
        assert client.predict([ROW])[0] == 400
