"""The benchmark of serving: its requests, its targets, its artifact, and who computes wrongly."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.serving.open_inference import HEADER_LENGTH, read_request
from experiments.benchmarks.peers.workers.http_bodies import FORMS, post
from experiments.benchmarks.serving.drawn_model import artifacts
from experiments.benchmarks.serving.in_process import Figure, checked
from experiments.benchmarks.serving.report import Entry, Target
from experiments.benchmarks.serving.servers import memory

DENSE = np.array([[0.5, -1.25], [3.0, 1e-7]], np.float32)
IDS = np.array([[1, 2, 3], [4, 5, 6]], np.int32)


@pytest.mark.parametrize("form", ["json", "binary"])
def test_requests_are_what_the_server_reads(form: str):
    head, _, body = post(form, DENSE, IDS).partition(b"\r\n\r\n")
    headers = dict(x.lower().split(": ") for x in head.decode().split("\r\n")[1:])
    assert int(headers["content-length"]) == len(body)
    found = read_request(body, headers.get(HEADER_LENGTH), lambda _: None)
    np.testing.assert_array_equal(found.tensors["dense"], DENSE)
    np.testing.assert_array_equal(found.tensors["ids"], IDS)
    assert found.binary == (form == "binary")


def test_answers_are_read():
    numbers = np.array([0.25, 0.5])
    answer = b'{"model_name":"x","outputs":[{"parameters":{"binary_data_size":16}}]}'
    np.testing.assert_array_equal(FORMS["binary"].read(answer + numbers.tobytes()), numbers)
    answer = b'{"outputs":[{"data":[0.25,0.5]}]}'
    np.testing.assert_array_equal(FORMS["json"].read(answer), numbers)


def test_wrong_predictions_are_not_timed():
    assert checked("peer", np.array([0.5]), np.array([0.5])) == 0
    for wrong in (0.50002, np.nan):
        with pytest.raises(UserError, match="peer computes something else"):
            checked("peer", np.array([wrong]), np.array([0.5]))


def test_lines_and_targets():
    rounds = [{"rate": 100.0, "p50_ms": 1.0, "p99_ms": 2.0}, {"rate": 120.0}]
    rounds[1] |= {"p50_ms": 1.0, "p99_ms": 2.0, "failed": 3}
    steady = [{"rate": 50.0, "p50_ms": 1.0, "p99_ms": 2.0}] * 2
    entry = Entry("HTTP", "int8", 1, [Figure("ours", rounds), Figure("peer", steady)])
    assert entry.lines().splitlines() == [
        "| HTTP | int8 | 1 | ours (3 failed) | 110\\* | 1.000 | 2.000 |  |",
        "| HTTP | int8 | 1 | peer | 50 | 1.000 | 2.000 | 2.20 |",
    ]
    assert entry.as_json()["unsteady"] == ["ours"]
    assert Target("ratio", 1.2, 1.2).is_met
    assert not Target("p99", 11, 10, at_most=True).is_met
    assert str(Target("ratio", float("nan"), 1.2)) == "MISSED  ratio: nan, target >= 1.2"


def test_the_artifact_is_made_once_and_its_memory_is_counted(tmp_path: Path):
    config = Config(
        table_rows=(9, 300), embedding_dim=4, dense_features=2, bottom_mlp=(4,), top_mlp=(1,)
    )
    made = artifacts(config, "tiny", ["int8"], tmp_path, fresh=False)
    probabilities = np.load(made["int8"] / "golden" / "probabilities.npy")
    assert len(np.unique(probabilities)) > 90, "rows have too little weight to see a wrong one"
    manifest = (made["int8"] / "manifest.json").stat()
    assert artifacts(config, "tiny", ["int8"], tmp_path, fresh=False) == made
    assert (made["int8"] / "manifest.json").stat().st_mtime_ns == manifest.st_mtime_ns
    mapped = np.memmap(made["int8"] / "tables" / "C2.rows", np.uint8, "r")
    assert mapped.sum() > 0
    found = memory(os.getpid(), made["int8"])
    assert 0 < found["artifact"] <= found["files"]
