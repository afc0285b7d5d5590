"""Runs of models of requests: gone on with bit for bit, and what they leave."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from request_job import MESH, REQUESTS, SETTINGS, SPLIT
from started_jobs import started

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import as_mesh
from dlrm_jax.requests.requests import split_of
from dlrm_jax.requests.run import run
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.training.record import read_record


def silent(text: str) -> None:
    del text


def test_a_run_that_goes_on_has_the_bits_of_an_unbroken_one(tmp_path: Path):
    mesh = as_mesh("2x1")
    whole = run(REQUESTS, SPLIT, SETTINGS, mesh, tmp_path / "whole", silent)
    half = dataclasses.replace(SETTINGS, epochs=2)
    run(REQUESTS, SPLIT, half, mesh, tmp_path / "parts", silent)
    said = []
    parts = run(REQUESTS, SPLIT, SETTINGS, mesh, tmp_path / "parts", said.append)
    assert any("resuming from step 6" in line for line in said)
    numbers = np.arange(len(REQUESTS))
    np.testing.assert_array_equal(
        whole.evaluation.logits(whole.state, numbers), parts.evaluation.logits(parts.state, numbers)
    )
    summaries = [
        json.loads((tmp_path / x / "summary.json").read_text()) for x in ("whole", "parts")
    ]
    assert summaries[0]["test"] == summaries[1]["test"]
    assert summaries[0]["steps"] == summaries[1]["steps"] == 12
    assert summaries[1]["resumed_from"] == 6
    records = [read_record(tmp_path / x / "metrics.jsonl") for x in ("whole", "parts")]
    validated = [[x for x in lines if x["split"] == "validation"] for lines in records]
    assert validated[0] == validated[1]
    assert len(validated[0]) == 4
    wider = dataclasses.replace(SETTINGS, width=8)
    with pytest.raises(UserError, match="its width is 4, this run's is 8"):
        run(REQUESTS, SPLIT, wider, mesh, tmp_path / "parts", silent)

    # The length of evaluation may be another one once there is nothing left to train.
    short = dataclasses.replace(SETTINGS, eval_length=2)
    outcome = run(REQUESTS, SPLIT, short, mesh, tmp_path / "parts", silent)
    assert outcome.summary["steps"] == 12
    assert outcome.summary["best_step"] == parts.summary["best_step"]
    assert outcome.summary["test"] != parts.summary["test"]
    more = dataclasses.replace(short, epochs=5)
    with pytest.raises(UserError, match="eval_length: expected 20, with which the checkpoints in"):
        run(REQUESTS, SPLIT, more, mesh, tmp_path / "parts", silent)


@pytest.mark.thorough
def test_it_goes_on_on_another_mesh(tmp_path: Path):
    whole = run(REQUESTS, SPLIT, SETTINGS, as_mesh("2x1"), tmp_path, silent)
    other = run(REQUESTS, SPLIT, SETTINGS, as_mesh("2x2"), tmp_path, silent)
    found, expected = (x.evaluation.logits(x.state, np.arange(60)) for x in (other, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_two_processes_have_the_numbers_of_one(tmp_path: Path):
    one = run(REQUESTS, SPLIT, SETTINGS, as_mesh(MESH), tmp_path / "one", silent)
    with started(Path(__file__).with_name("request_job.py"), 2, tmp_path) as processes:
        processes.wait(600)
    with np.load(tmp_path / "logits.npz") as saved:
        expected = one.evaluation.logits(one.state, np.arange(len(REQUESTS)))
        np.testing.assert_allclose(saved["logits"], expected, rtol=1e-4, atol=1e-5)
    summaries = [json.loads((tmp_path / x / "summary.json").read_text()) for x in ("one", "run")]
    assert summaries[0]["test"]["auc"] == summaries[1]["test"]["auc"]


def test_the_split_is_by_time():
    assert REQUESTS.times is not None
    sizes = [len(x) for x in SPLIT]
    assert sizes == [48, 6, 6]
    latest = [REQUESTS.times[x].max() for x in SPLIT]
    assert latest == sorted(latest)
    with pytest.raises(UserError, match="expected a log whose times can be cut"):
        split_of(np.zeros(20, np.int64))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"history_sampling": 512}, "history_sampling: expected less than max_length, 512"),
        ({"dropout": 0.1}, "encoder=stca has no dropout: expected 0, got 0.1"),
        ({"encoder": "hstu", "dropout": 1.0}, "dropout: expected a share from 0 to below 1"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number"),
    ],
)
def test_settings_that_are_refused(settings: dict, text: str):
    with pytest.raises(UserError, match=text):
        RequestSettings(**settings)
