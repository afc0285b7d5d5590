"""Published settings, on small directories in the formats of MovieLens 1M and 20M."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from main_job import run
from movielens_files import write_1m, write_csv

from dlrm_jax.data.movielens.formats import read_tables
from dlrm_jax.mesh import as_mesh
from dlrm_jax.sequential.interactions import interactions_of
from dlrm_jax.sequential.presets import PRESETS
from dlrm_jax.sequential.questions import split_of
from dlrm_jax.sequential.run import run as run_sequences

PROGRAM = ("-m", "experiments.next_item")


@pytest.mark.parametrize(
    ("preset", "write"),
    [
        pytest.param("sasrec_ml1m", write_1m, marks=pytest.mark.thorough),
        pytest.param("hstu_large_ml1m", write_1m, marks=pytest.mark.thorough),
        pytest.param("hstu_ml20m", write_csv, marks=pytest.mark.thorough),
        pytest.param("hstu_large_ml20m", write_csv, marks=pytest.mark.thorough),
    ],
)
def test_presets_train_on_their_data(preset: str, write, tmp_path: Path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    log = interactions_of(read_tables(tmp_path / "data").ratings, "user", "item", "time")
    settings = dataclasses.replace(
        PRESETS[preset], batch_size=2, epochs=1, at=(2,), metric="ndcg@2", exclude_seen=False
    )
    split = split_of(log, "leave_one_out")
    outcome = run_sequences(log, split, settings, as_mesh("1x1"), tmp_path / "run", lambda _: None)
    assert outcome.summary["users"] == 3
    assert outcome.evaluation.items(outcome.state).shape == (5, settings.width)


def test_heads_divide_the_width_as_published():
    sizes = {name: (x.width, x.layers, x.heads) for name, x in PRESETS.items()}
    assert sizes == {
        "hstu_ml1m": (50, 2, 1),
        "hstu_large_ml1m": (50, 8, 2),
        "sasrec_ml1m": (50, 2, 1),
        "hstu_ml20m": (256, 4, 4),
        "hstu_large_ml20m": (256, 16, 8),
        "sasrec_ml20m": (256, 4, 4),
    }
    assert {x.encoder for name, x in PRESETS.items() if "hstu" in name} == {"hstu"}


@pytest.mark.thorough
def test_flags_change_the_preset(tmp_path: Path):
    (tmp_path / "data").mkdir()
    write_1m(tmp_path / "data")
    given = ("--batch_size=2", "--epochs=1", "--at=2", "--metric=ndcg@2", "--width=8")
    places = f"--data={tmp_path / 'data'}", f"--workdir={tmp_path / 'w'}"
    result = run("--preset=hstu_ml1m", *given, *places, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "3 users with a mean of 4 interactions, at most 5; 5 items" in result.stdout
    test = json.loads((tmp_path / "w" / "summary.json").read_text())["test"]
    assert 0 <= test["model"]["coverage@2"] <= 1
    (checkpoint,) = (tmp_path / "w" / "checkpoints").glob("0*/metadata.json")
    settings = json.loads(checkpoint.read_text())["settings"]
    assert settings["width"] == 8
    assert settings["beta2"] == 0.98
    assert settings["negatives"] == 128


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ("--encoder=bag", "--heads=2"),
            "--heads has no effect with --encoder=bag, which has neither",
        ),
        (("--sampler=frequency",), "--sampler has no effect without --negatives"),
        (("--encoder=hstu", "--hidden_width=8"), "--hidden_width: expected 0 for encoder=hstu"),
        (("--sampler=in_batch", "--negatives=3"), "--negatives: expected 0 with sampler=in_batch"),
    ],
)
def test_flags_that_nothing_would_read(flags: tuple[str, ...], text: str):
    result = run(*flags, program=PROGRAM)
    assert result.returncode == 2
    assert re.search(text, result.stderr), result.stderr


def test_a_log_without_rows(tmp_path: Path):
    log = tmp_path / "none.csv"
    log.write_text("user_id,item_id,timestamp\n", encoding="utf-8")
    result = run(f"--log={log}", f"--workdir={tmp_path / 'w'}", program=PROGRAM)
    assert result.returncode == 2
    assert f"log {log}: expected a row for each interaction, got none" in result.stderr


@pytest.mark.thorough
def test_dates_of_a_csv(tmp_path: Path):
    log = tmp_path / "log.csv"
    rows = [f"u{i % 5},i{i % 7},2024-01-{1 + i // 2:02} 05:00:0{i % 10}\n" for i in range(40)]
    log.write_text("user_id,item_id,timestamp\n" + "".join(rows), encoding="utf-8")
    small = ("--encoder=bag", "--epochs=1", "--batch_size=2", "--width=4", "--at=2", "--pieces=1")
    given = ("--metric=mrr", "--max_length=3", f"--log={log}", f"--workdir={tmp_path / 'w'}")
    result = run(*small, *given, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "5 users with a mean of 8 interactions, at most 8; 7 items" in result.stdout
    assert "training 15," in result.stdout  # the latest three of each user
