"""Servers of models of sequences answer as the recommender and as the evaluation do."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from clients import Client, serving
from main_job import in_background, run
from planted_histories import LOG, SETTINGS, SPLIT

from dlrm_jax.mesh import as_mesh
from dlrm_jax.sequential.recommender import Recommender
from dlrm_jax.sequential.run import run as run_sequences
from dlrm_jax.sequential.saved_model import read_model, write_model
from dlrm_jax.sequential_serving.sequence_models import SequenceModels
from dlrm_jax.serving.http_messages import Limits

NAMES = pl.Series([f"item {number}" for number in range(len(LOG.values))])
SERVE = ("-m", "dlrm_jax", "serve")


@dataclasses.dataclass(frozen=True)
class Served:
    client: Client
    directory: Path
    hits: float


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server of a model that was trained on eight devices, and its HR@5."""
    directory = tmp_path_factory.mktemp("served")
    settings = dataclasses.replace(SETTINGS, encoder="hstu", epochs=1, max_length=9)
    outcome = run_sequences(LOG, SPLIT, settings, as_mesh("2x4"), directory / "run", lambda _: None)
    own = Recommender.of_state(outcome.learner, settings, outcome.state, NAMES)
    write_model(directory / "1", own, "small", outcome.summary["best_step"])
    with serving(directory / "1", SequenceModels, limits=Limits(9_000, rows=8)) as client:
        yield Served(client, directory / "1", outcome.summary["test"]["model"]["hr@5"])


def row(question: int) -> dict[str, Any]:
    first, asked = SPLIT.test.firsts[question], SPLIT.test.asked[question]
    return {
        "history": NAMES[LOG.items[first:asked]].to_list(),
        "times": LOG.times[first:asked].tolist(),
        "time": int(LOG.times[asked]),
    }


def ask(client: Client, rows: list[Any], **options: Any) -> tuple[int, Any]:
    return client.ask("POST", "/predict", {"rows": rows} | options)[:2]


def test_many_clients_get_what_the_evaluation_has_ranked(served: Served):
    newest: Any = served.client.server.repository.newest
    program = newest.recommender.program
    compiled = [program._encode, program._scores, program._exclude, program._first]
    sizes = [x._cache_size() for x in compiled]
    count = len(SPLIT.test.asked)
    found: dict[int, Any] = {}

    def of_client(first: int) -> None:
        for question in range(first, count, 8):
            found[question] = ask(served.client, [row(question)], k=5)

    threads = [threading.Thread(target=of_client, args=[first]) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(status == 200 for status, _ in found.values())
    chosen = NAMES[LOG.items[SPLIT.test.asked]].to_list()
    answers = [found[x][1]["recommendations"][0]["items"] for x in range(count)]
    hits = [answer in items for answer, items in zip(chosen, answers, strict=True)]
    assert np.mean(hits) == served.hits
    assert 0 < sum(hits) < count
    assert [x._cache_size() for x in compiled] == sizes


def test_several_rows_of_a_request(served: Served):
    rows = [row(0), row(1) | {"history": ["never seen", *row(1)["history"][1:]]}]
    status, found = ask(served.client, rows, exclude_seen=True)
    assert status == 200, found
    expected = read_model(served.directory).recommend(
        [x["history"] for x in rows],
        10,
        [x["times"] for x in rows],
        [x["time"] for x in rows],
        exclude_seen=True,
    )
    assert [x["unknown"] for x in found["recommendations"]] == [0, 1]
    for own, wanted in zip(found["recommendations"], expected, strict=True):
        assert own["items"] == wanted.items
        np.testing.assert_allclose(own["scores"], wanted.scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"rows": []}, 400, "expected at least one row, got none"),
        ({"rows": [row(0)] * 9}, 413, "expected at most 8 rows, got 9"),
        ({"rows": [{"history": []}]}, 400, "row 0: times: expected the times of the history"),
        ({"rows": [row(0), row(0) | {"history": ["new"] * 5}]}, 400, "row 1: times: expected 5"),
        ({"rows": [row(0) | {"history": "item 3"}]}, 400, "Expected `array`, got `str`"),
        ({"rows": [row(0) | {"user": 3}]}, 400, "Object contains unknown field `user`"),
        ({"k": 1025}, 400, "row 0: k: expected a number from 1 to 1,024, got 1025"),
        ({"k": "5"}, 400, 'expected {"rows": [{"history": [item, …], "times"'),
        ({"rows": [row(0) | {"history": ["x" * 9_000]}]}, 413, "expected a body of at most 9000"),
    ],
)
def test_what_is_wrong_is_named(served: Served, change: Any, status: int, text: str):
    found = ask(served.client, **({"rows": [row(0)]} | change))
    assert (found[0], text in found[1]["error"]) == (status, True), found


def test_about_the_model(served: Served):
    ask(served.client, [row(0)])
    about = served.client.ask("GET", "/v2/models/small")[1]
    assert (about["inputs"], about["outputs"], about["versions"]) == ([], [], ["1"])
    status, found, _ = served.client.ask("POST", "/v2/models/small/infer", {"inputs": []})
    assert (status, "expected POST /predict with histories" in found["error"]) == (400, True)
    assert served.client.ask("GET", "/v2/models/small/versions/1/ready")[0] == 200
    text = served.client.ask("GET", "/metrics")[1].decode()
    for name in ("batch_rows_count", "queue_seconds_count"):
        assert re.search(rf'dlrm_jax_{name}{{.*version="1".*}} [1-9]', text), name


def test_the_command_and_a_version_that_takes_anothers_place(served: Served, tmp_path: Path):
    own = read_model(served.directory)
    numbers = pl.Series(range(100, 130))
    models = tmp_path / "models"
    models.mkdir()
    write_model(models / "1", own, "small", 1)
    later = Recommender(own.settings, own.model, own.table, numbers)
    with in_background(str(models), "--port=0", "--name=small", program=SERVE) as server:
        deadline = time.monotonic() + 100
        while not (found := re.search(r"http://(\S+):(\d+)", server.stdout)):
            assert server.returncode is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

        def post(path: str, body: Any) -> Any:
            content = json.dumps(body).encode()
            with urllib.request.urlopen(f"{found[0]}{path}", content, timeout=60) as response:
                return json.load(response)

        (before,) = post("/predict", {"rows": [row(3)]})["recommendations"]
        write_model(models / "2", later, "small", 2)
        loaded = post("/v2/repository/models/small/load", {})
        assert loaded == {"loaded": ["2"], "versions": ["2"]}
        of_numbers = [100 + int(x.removeprefix("item ")) for x in row(3)["history"]]
        (after,) = post("/predict", {"rows": [row(3) | {"history": of_numbers}]})["recommendations"]
        ended = server.end(signal.SIGTERM)
    assert after["items"] == [100 + int(x.removeprefix("item ")) for x in before["items"]]
    assert after["scores"] == before["scores"]
    assert "version 1: Recommender(hstu, 30 items, width 16)" in ended.stderr
    assert ended.stdout.splitlines()[-1] == "all requests are answered"
    (tmp_path / "fade.json").write_text("{}", encoding="utf-8")
    for flag, text in (
        (
            f"--fade={tmp_path / 'fade.json'}",
            "fade: expected a model of rows, got one of seq",
        ),
        ("--batch_tokens=9", "--batch_tokens: expected a model of requests"),
    ):
        refused = run(str(models), flag, program=SERVE)
        assert (refused.returncode, text in refused.stderr) == (2, True)
