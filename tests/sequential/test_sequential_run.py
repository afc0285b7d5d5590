"""Runs of models of sequences: gone on with, and better than what ignores the order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from planted_histories import LOG, SETTINGS, SPLIT
from sequential_job import MESH
from started_jobs import started

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import as_mesh
from dlrm_jax.sequential.questions import split_of
from dlrm_jax.sequential.run import fixed_settings, of_earlier, run
from dlrm_jax.training.record import read_record
from experiments.next_item.planted_order import generate, planted_order, planted_places

BAG = dataclasses.replace(SETTINGS, encoder="bag", epochs=1)


def rows_of(outcome) -> np.ndarray:
    return outcome.evaluation.items(outcome.state)


def silent(text: str) -> None:
    del text


@pytest.mark.thorough
def test_a_run_that_goes_on_has_the_bits_of_an_unbroken_one(tmp_path: Path):
    mesh = as_mesh("2x1")
    whole = run(LOG, SPLIT, SETTINGS, mesh, tmp_path / "whole", silent)
    half = dataclasses.replace(SETTINGS, epochs=2)
    run(LOG, SPLIT, half, mesh, tmp_path / "parts", silent)
    said = []
    parts = run(LOG, SPLIT, SETTINGS, mesh, tmp_path / "parts", said.append)
    assert any("resuming from step 8" in line for line in said)
    np.testing.assert_array_equal(rows_of(whole), rows_of(parts))
    summaries = [
        json.loads((tmp_path / x / "summary.json").read_text()) for x in ("whole", "parts")
    ]
    assert summaries[0]["test"] == summaries[1]["test"]
    assert summaries[0]["steps"] == summaries[1]["steps"] == 16
    records = [read_record(tmp_path / x / "metrics.jsonl") for x in ("whole", "parts")]
    validated = [[x for x in lines if x["split"] == "validation"] for lines in records]
    assert validated[0] == validated[1]
    assert len(validated[0]) == 4

    seen = dataclasses.replace(SETTINGS, exclude_seen=True, epochs=5)
    with pytest.raises(UserError, match="exclude_seen: expected False, with which the checkpoints"):
        run(LOG, SPLIT, seen, mesh, tmp_path / "parts", silent)
    other = dataclasses.replace(SETTINGS, width=8)
    with pytest.raises(UserError, match="its width is 16, this run's is 8"):
        run(LOG, SPLIT, other, mesh, tmp_path / "parts", silent)


@pytest.mark.thorough
def test_two_processes_have_the_numbers_of_one(tmp_path: Path):
    settings = dataclasses.replace(SETTINGS, epochs=2)
    one = run(LOG, SPLIT, settings, as_mesh(MESH), tmp_path / "one", silent)
    with started(Path(__file__).with_name("sequential_job.py"), 2, tmp_path) as processes:
        processes.wait(600)
    with np.load(tmp_path / "rows.npz") as saved:
        np.testing.assert_allclose(saved["rows"], rows_of(one), rtol=1e-4, atol=1e-5)
    summaries = [json.loads((tmp_path / x / "summary.json").read_text()) for x in ("one", "run")]
    assert summaries[0]["test"] == summaries[1]["test"]
    records = [read_record(tmp_path / x / "metrics.jsonl") for x in ("one", "run")]
    losses = [[x["loss"] for x in lines if x["split"] == "train"] for lines in records]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(losses[0])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("encoder", "at_least", "at_most"), [("hstu", 0.8, 1), ("sasrec", 0.8, 1), ("bag", 0, 0.6)]
)
def test_the_order_is_learned(encoder, at_least: float, at_most: float, tmp_path: Path):
    order = planted_order(60, 0)
    log = generate(order, users=600, longest=40, seed=1)
    split = split_of(log, "leave_one_out")
    settings = dataclasses.replace(
        SETTINGS, encoder=encoder, width=32, batch_size=64, epochs=30, learning_rate=0.005
    )
    outcome = run(log, split, settings, as_mesh("1x1"), tmp_path / "run", silent)
    found = outcome.summary["test"]["model"]["hr@5"]
    best = np.mean(planted_places(order, log, split.test) < 5)
    assert outcome.summary["test"]["popularity"]["hr@5"] < best / 2
    assert at_least * best < found < at_most * best


def test_popularity_counts_ties_as_ranked_before(tmp_path: Path):
    outcome = run(LOG, SPLIT, BAG, as_mesh("2x2"), tmp_path, silent)
    test = outcome.summary["test"]
    counts = np.bincount(
        np.concatenate([LOG.items[start:end] for start, end in SPLIT.train]), minlength=30
    )
    chosen = LOG.items[SPLIT.test.asked]
    places = np.asarray([(counts >= counts[x]).sum() - 1 for x in chosen])
    assert test["popularity"]["hr@5"] == np.mean(places < 5)
    assert test["popularity"]["mrr"] == pytest.approx(np.mean(1 / (1 + places)))
    assert test["popularity"]["coverage@5"] == pytest.approx(5 / 30)  # the same ones for all
    assert 5 / 30 <= test["model"]["coverage@5"] <= 1
    strata = test["model"]["strata"]
    assert sum(x["questions"] for x in strata.values()) == len(chosen)
    hits = sum(x["questions"] * x["hr@5"] for x in strata.values())
    assert hits / len(chosen) == pytest.approx(test["model"]["hr@5"])


@pytest.mark.thorough
def test_items_of_the_history_are_ranked_by_neither(tmp_path: Path):
    settings = dataclasses.replace(BAG, exclude_seen=True)
    outcome = run(LOG, SPLIT, settings, as_mesh("1x1"), tmp_path, silent)
    counts = np.bincount(
        np.concatenate([LOG.items[start:end] for start, end in SPLIT.train]), minlength=30
    )
    places = []
    for first, asked in zip(*SPLIT.test, strict=True):
        own = int(LOG.items[asked])
        rivals = set(range(30)) - set(LOG.items[first:asked].tolist()) - {own}
        places.append(sum(counts[x] >= counts[own] for x in rivals))
    found = outcome.summary["test"]["popularity"]["hr@5"]
    assert found == pytest.approx(np.mean(np.asarray(places) < 5))


def test_the_metric_that_chose_checkpoints_remains(tmp_path: Path):
    mesh, settings = as_mesh("1x1"), BAG
    run(LOG, SPLIT, settings, mesh, tmp_path, silent)
    other = dataclasses.replace(settings, metric="mrr")
    with pytest.raises(UserError, match="metric: expected ndcg@5, with which the checkpoints in"):
        run(LOG, SPLIT, other, mesh, tmp_path, silent)
    shown = dataclasses.replace(settings, at=(2,))  # the metric has a k of its own
    test = run(LOG, SPLIT, shown, mesh, tmp_path, silent).summary["test"]["model"]
    assert {"hr@2", "ndcg@2", "ndcg@5"} < test.keys()
    assert "hr@50" not in test


def test_runs_of_earlier_versions_know_fewer_settings():
    here = fixed_settings(SETTINGS)
    added = {"beta2", "decay_start", "decay_steps", "hidden_width"}
    assert added < here.keys()
    assert of_earlier({x: y for x, y in here.items() if x not in added}) == here
    other = fixed_settings(dataclasses.replace(SETTINGS, decay_steps=9))
    assert of_earlier(other)["decay_steps"] == 9
