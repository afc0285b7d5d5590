"""Servers of models of requests answer as their scorers do, alone and many at a time."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from clients import Client, serving
from documents import ROOT, commands
from flax import nnx
from main_job import in_background, run
from random_requests import COLUMNS, ROWS, random_requests

from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.inference.probabilities import sigmoid
from dlrm_jax.mesh import as_mesh
from dlrm_jax.request_serving.request_models import RequestModels
from dlrm_jax.request_serving.rows_of_log import checked_row, read_row
from dlrm_jax.requests.batches import RequestTraining
from dlrm_jax.requests.columns import Columns, read_columns
from dlrm_jax.requests.evaluation import Evaluation
from dlrm_jax.requests.model import RequestRanker, learner_for
from dlrm_jax.requests.request_model import RequestModel
from dlrm_jax.requests.saved_model import read_model, write_model
from dlrm_jax.requests.scorer import RequestScorer
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.serving.http_messages import Limits

REQUESTS = random_requests(24, longest=80, most=6)
SETTINGS = RequestSettings(encoder="stca", width=8, layers=1, max_length=40, mlp=(6,), batch_size=8)
SERVE = ("-m", "dlrm_jax", "serve")
DEEP: Any = functools.reduce(lambda inner, _: [inner], range(500), [])
"""Lists in lists: polars would take half a minute, while no one else is answered."""


def written(directory: Path, seed: int, known: Any = None, **settings: Any) -> np.ndarray:
    """Writes a model, and gives the logits of all candidates by its evaluation."""
    own = dataclasses.replace(SETTINGS, **settings)
    shapes = RequestTraining(REQUESTS, np.arange(24), own, 1).shapes
    learner = learner_for(COLUMNS, ROWS, shapes, own, as_mesh("1x1"))
    state = learner.init(seed)
    write_model(directory, RequestScorer.of_state(learner, COLUMNS, own, state), known)
    logits = Evaluation(learner, REQUESTS, shapes, own).logits(state, np.arange(24))
    return logits.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Served:
    client: Client
    directory: Path
    logits: np.ndarray

    def expected(self, request: int) -> np.ndarray:
        return sigmoid(self.logits[slice(*REQUESTS.candidate_offsets[request : request + 2])])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("served") / "1"
    logits = written(directory, 0)
    limits = Limits(body_bytes=20_000, rows=8)
    with serving(directory, RequestModels, limits=limits) as client:
        yield Served(client, directory, logits)


def row(request: int) -> dict[str, Any]:
    """A row of the log without its label."""
    tokens, items = (
        slice(*offsets[request : request + 2])
        for offsets in (REQUESTS.history_offsets, REQUESTS.candidate_offsets)
    )
    assert REQUESTS.history_times is not None
    assert REQUESTS.times is not None
    found = {name: x[tokens].tolist() for name, x in REQUESTS.history.items()}
    found |= {name: x[items].tolist() for name, x in REQUESTS.candidates.items()}
    found |= {name: int(x[request]) for name, x in REQUESTS.context.items()}
    times = REQUESTS.history_times[tokens].tolist()
    return {**found, "seen_at": times, "at": int(REQUESTS.times[request])}


def asked(client: Client, given: Any) -> tuple[int, Any]:
    return client.ask("POST", "/predict", {"request": given})[:2]


def by_model(directory: Path, given: dict[str, Any]) -> np.ndarray:
    """The probabilities of a program that reads the model."""
    model = read_model(directory, batch_candidates=16)
    history = {name: given[name] for name in COLUMNS.history}
    kept = model.encode(history, given["seen_at"], given["at"])
    return sigmoid(model.score(kept, {"item": given["item"]}, {"country": given["country"]}))


def test_answers_are_those_of_a_program_and_of_the_evaluation(served: Served):
    assert (REQUESTS.lengths > 40).any()  # of which the latest actions are read
    for request in range(10):
        status, found = asked(served.client, row(request))
        assert status == 200, found
        np.testing.assert_allclose(found["predictions"], served.expected(request), rtol=1e-5)
        if request in (0, 1):  # without a history, and with one
            alone = by_model(served.directory, row(request))
            np.testing.assert_array_equal(found["predictions"], alone)


def test_many_clients_get_each_their_own(served: Served, caplog: pytest.LogCaptureFixture):
    newest: Any = served.client.server.repository.newest
    functions = [getattr(newest.model.scorer.program, x) for x in ("_encode", "_score")]
    sizes = [x._cache_size() for x in functions]
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        given = row(i) if i % 7 != 3 else row(i) | {"item": [999]}
        found[i] = asked(served.client, given)

    threads = [threading.Thread(target=ask, args=[i]) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (status, answer) in found.items():
        if i % 7 == 3:
            assert status == 400
            assert "expected ids below 30, the rows of table 'item', in 'item'" in answer["error"]
        else:
            np.testing.assert_allclose(answer["predictions"], served.expected(i), rtol=1e-5)
    assert [x._cache_size() for x in functions] == sizes
    assert "error" not in caplog.text.lower()


def test_the_open_inference_protocol(served: Served):
    _, about, _ = served.client.ask("GET", "/v2/models/small")
    assert [(x["name"], x["datatype"], x["shape"]) for x in about["inputs"]] == [
        ("seen", "INT64", [-1]),
        ("did", "INT64", [-1]),
        ("item", "INT64", [-1]),
        ("country", "INT64", [1]),
        ("seen_at", "INT64", [-1]),
        ("at", "INT64", [1]),
    ]
    assert about["outputs"] == [{"name": "probability", "datatype": "FP64", "shape": [-1]}]
    values = {name: np.atleast_1d(x).astype("<i8") for name, x in row(1).items()}
    described = [
        {"name": name, "datatype": "INT64", "shape": [len(x)]} for name, x in values.items()
    ]
    in_json = [x | {"data": values[x["name"]].tolist()} for x in described]
    sizes = [{"binary_data_size": 8 * x["shape"][0]} for x in described]
    in_binary = [x | {"parameters": y} for x, y in zip(described, sizes, strict=True)]
    head = json.dumps({"inputs": in_binary}).encode()
    behind = b"".join(x.tobytes() for x in values.values())
    path = "/v2/models/small/infer"
    for body, headers in (
        (json.dumps({"inputs": in_json}).encode(), {}),
        (head + behind, {"inference-header-content-length": str(len(head))}),
    ):
        status, found, _ = served.client.ask("POST", path, body, headers)
        assert status == 200, found
        (output,) = found["outputs"]
        assert (output["name"], output["shape"]) == ("probability", [REQUESTS.counts[1]])
        np.testing.assert_allclose(output["data"], served.expected(1), rtol=1e-5)
    wrong = [x | ({"shape": [2], "data": [1, 2]} if x["name"] == "at" else {}) for x in in_json]
    status, found, _ = served.client.ask("POST", path, {"inputs": wrong})
    assert (status, found["error"]) == (400, "input at: expected the shape [1], got [2]")


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"country": None}, 400, "context: country: expected a value in each place, got a missing"),
        ({"country": "x"}, 400, "context: expected a list of integers in 'country', got"),
        ({"country": True}, 400, "context: expected a list of integers in 'country', got bool"),
        (
            {"country": {"x": 1}},
            400,
            "context: country: expected a single value, got {",
        ),
        ({"country": [1]}, 400, "request: country: expected a single value, got [1]"),
        ({"item": 3}, 400, "request: item: expected a list, got 3"),
        ({"item": []}, 400, "expected at least one candidate, got none"),
        ({"item": [1] * 9}, 413, "expected at most 8 candidates, got 9"),
        ({"item": [[1]]}, 400, "candidates: item: expected a list of single values"),
        ({"item": [1.5]}, 400, "candidates: expected a list of integers in 'item', got float64"),
        ({"did": [1]}, 400, "history: expected as many ids in all columns, got"),
        ({"seen_at": [1]}, 400, "times: expected "),
        ({"at": 2**64 - 1}, 400, "time: expected an integer of seconds, or a date"),
        ({"at": 0.5}, 400, "time: expected an integer of seconds, or a date"),
        ({"at": 2**63 - 1}, 400, "time: expected an integer of seconds, or a date"),
        ({"at": 2**200}, 400, "time: expected an integer of seconds, or a date"),
        ({"at": 2**40}, 400, "times: expected less than 68 years before the request's"),
        ({"at": -(2**40)}, 400, "times: expected none after that of the request, as in the log"),
        ({"at": "2026-01-01"}, 400, "or a date object of Python, got '2026-01-01'"),
        (
            {"seen": DEEP},
            400,
            "history: seen: expected a list of single values of one type, got [[",
        ),
        ({"item": [1, DEEP]}, 400, "candidates: item: expected a list of single values"),
        ({"country": {"x": DEEP}}, 400, "context: country: expected a single value"),
        ({"seen_at": DEEP}, 400, "times: expected integers of seconds"),
        ({"at": {"x": DEEP}}, 400, "time: expected an integer of seconds"),
        ({"seen_at": None}, 400, "request: seen_at: expected a list, got None"),
        ({"city": "x"}, 400, "request: expected the columns seen, did, item, country, seen_at,"),
    ],
)
def test_what_is_wrong_is_named(served: Served, change: Any, status: int, text: str):
    begun = time.monotonic()
    found = asked(served.client, row(1) | change)
    assert time.monotonic() - begun < 5
    assert (found[0], text in found[1]["error"]) == (status, True), found


def test_other_bodies(served: Served):
    lacking = {name: x for name, x in row(1).items() if name != "country"}
    for body, text in (
        ({"request": lacking}, "request: there is no column 'country', expected seen, did, item"),
        ({"rows": [row(1)]}, 'expected {"request": {"column": [value, …] or value, …}}: Object'),
        (b"[" * 10_000, 'expected {"request"'),
        (b"\xff", 'expected {"request"'),
    ):
        status, found, _ = served.client.ask("POST", "/predict", body)
        assert (status, text in found["error"]) == (400, True), found


def test_metrics_and_health(served: Served):
    asked(served.client, row(2))
    assert served.client.ask("GET", "/v2/health/ready")[:2] == (200, {"ready": True})
    assert served.client.ask("GET", "/v2/models/small/versions/1/ready")[0] == 200
    text = served.client.ask("GET", "/metrics")[1].decode()
    for name in ("batch_rows_count", "queue_seconds_count", "probability_count"):
        assert re.search(rf'dlrm_jax_{name}{{.*version="1".*}} [1-9]', text), name


def test_texts_and_a_version_that_takes_anothers_place(tmp_path: Path):
    known = {
        table: vocabulary.learn([pl.LazyFrame({"value": [f"{table}{i}" for i in range(rows - 2)]})])
        for table, rows in ROWS.items()
    }
    given = {
        "seen": ["item3", "never seen"], "did": ["action1", "action0"], "seen_at": [5, 90],
        "item": ["item5", "item1", "new"], "country": None, "at": 100,
    }  # fmt: skip
    models = tmp_path / "models"
    models.mkdir()
    written(models / "1", 0, known, encoder="mean")
    written(tmp_path / "2", 1, known, encoder="mean")
    with serving(models, RequestModels) as client:
        assert {x["datatype"] for x in client.ask("GET", "/v2/models/small")[1]["inputs"]} == {
            "BYTES",
            "INT64",
        }
        for version in ("1", "2"):
            status, found = asked(client, given)
            assert status == 200, found
            expected = by_model(models / version, given)
            np.testing.assert_array_equal(found["predictions"], expected)
            if version == "1":
                (tmp_path / "2").rename(models / "2")
                load = client.ask("POST", "/v2/repository/models/small/load")
                assert load[:2] == (200, {"loaded": ["2"], "versions": ["2"]})
        status, found = asked(client, given | {"seen": [3, 4]})
        text = "history: seen: expected text, as in the log, got numbers"
        assert (status, found["error"]) == (400, text)
        (models / "3").mkdir()
        shutil.copy(Path(__file__), models / "3" / "manifest.json")
        assert client.ask("POST", "/v2/repository/models/small/load")[0] == 400
        assert asked(client, given)[0] == 200


def test_the_command_from_its_start_to_a_signal(served: Served, tmp_path: Path):
    flags = ["--port=0", "--batch_size=16", "--name=ranker"]
    with in_background(str(served.directory), *flags, program=SERVE) as server:
        deadline = time.monotonic() + 100
        while not (found := re.search(r"http://(\S+):(\d+)", server.stdout)):
            assert server.returncode is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = f"{found[0]}/predict"
        body = json.dumps({"request": row(1)}).encode()
        with urllib.request.urlopen(address, body, timeout=20) as response:
            predictions = json.load(response)["predictions"]
        ended = server.end(signal.SIGTERM)
    np.testing.assert_array_equal(predictions, by_model(served.directory, row(1)))
    assert "version 1: stca of up to 40 actions, packs of 64 tokens and 16 cand" in ended.stderr
    assert ended.stdout.splitlines()[-1] == "all requests are answered"
    (tmp_path / "fade.json").write_text("{}", encoding="utf-8")
    faded = run(str(served.directory), f"--fade={tmp_path / 'fade.json'}", program=SERVE)
    assert faded.returncode == 2
    assert "fade: expected a model of rows, got one of requests" in faded.stderr


def test_the_documented_request_is_taken():
    """Its columns are those of the documented command, and its values have any ids."""
    text = (ROOT / "docs" / "long-history.md").read_text()
    ((_, arguments),) = [
        x for x in commands(text) if x[0] == "experiments.long_history" and "--context" in x[1][3]
    ]
    given = dict(x.removeprefix("--").split("=") for x in arguments)
    kinds = ("history", "candidates", "context")
    history, candidates, context = (read_columns(x, given[x].split(",")) for x in kinds)
    columns = Columns(
        history, candidates, context, history_time=given["history_time"], time=given["time"]
    )
    settings = dataclasses.replace(SETTINGS, encoder="mean")
    model = RequestRanker(columns, settings, rngs=nnx.Rngs(0))
    tables = {name: jnp.ones((3, 8)) for name in columns.tables}
    scorer = RequestScorer(columns, settings, model, tables)
    (body,) = re.findall(r"/predict -d '(.*)'", text)
    row = read_row(body.encode())
    ids = {name: [2 for _ in x] if isinstance(x, list) else 2 for name, x in row.items()}
    times = {name: row[name] for name in ("seen_at", "at")}
    request = checked_row(RequestModel(scorer, {}), ids | times)
    assert (request.tokens, len(request)) == (2, 3)
    (logits,) = scorer.score_all([request])
    assert (logits == logits[0]).all()


def test_batch_tokens_are_of_models_of_requests(tmp_path: Path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "manifest.json").write_text("{}", encoding="utf-8")
    ended = run(str(tmp_path), "--batch_tokens=9", program=SERVE)
    assert ended.returncode == 2
    assert "--batch_tokens: expected a model of requests" in ended.stderr
