"""The program of long histories, and the interest that it plants."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from main_job import run

from dlrm_jax.requests.saved_model import read_model
from experiments.long_history.planted_interest import LIKE, generate

PROGRAM = ("-m", "experiments.long_history")
SMALL = (
    "--mesh=1x1", "--requests=60", "--shown=3", "--horizon=16", "--longest=32", "--epochs=1",
    "--batch_size=8", "--width=4", "--mlp=8",
)  # fmt: skip


def test_labels_depend_on_the_likes_of_a_category_up_to_the_horizon():
    planted = generate(30, 4, horizon=20, longest=50, seed=1)
    requests, shares = planted.requests, []
    for i in range(30):
        first, end = requests.history_offsets[i : i + 2]
        latest = range(max(first, end - 20), end)
        for j in range(*requests.candidate_offsets[i : i + 2]):
            shown = requests.candidates["category"][j]
            likes = [
                t
                for t in latest
                if requests.history["action"][t] == LIKE
                and requests.history["history_category"][t] == shown
            ]
            shares.append(len(likes) / len(latest))
    z = (np.asarray(shares) - np.mean(shares)) / np.std(shares)
    np.testing.assert_allclose(planted.logits, 2 * z - 0.5, rtol=1e-12)
    np.testing.assert_array_equal(
        requests.history["history_item"] % 8, requests.history["history_category"]
    )
    assert requests.history_times is not None
    assert requests.times is not None
    for i in range(30):
        own = requests.history_times[slice(*requests.history_offsets[i : i + 2])]
        assert (np.diff(own) > 0).all()
        assert own[-1] < requests.times[i]


@pytest.mark.thorough
def test_generated_requests_by_length(tmp_path: Path):
    flags = ("--encoder=mean", "--lengths=8,16", f"--workdir={tmp_path / 'w'}")
    result = run(*SMALL, *flags, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    rows = re.findall(r"^(mean 8|mean 16|planted interest) +[0-9.]+ +", result.stdout, re.M)
    assert rows == ["mean 8", "mean 16", "planted interest"]
    assert (tmp_path / "w" / "length_16" / "summary.json").exists()


@pytest.mark.thorough
def test_the_shape_of_dlrm_v3_cut_to_a_small_machine(tmp_path: Path):
    sizes = ("--encoder_width=8", "--attention_width=4", "--linear_width=4", "--max_length=8")
    flags = ("--preset=dlrm_v3", "--most_rows=64", *sizes, f"--workdir={tmp_path / 'w'}")
    result = run(*SMALL, *flags, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert summary["requests"] == 60
    assert summary["candidates"] == 180
    assert "histories of 2" in result.stdout  # from four fifths of 32 to all of it
    assert "hstu 8:" in result.stdout


@pytest.mark.thorough
def test_a_log(tmp_path: Path):
    rng = np.random.default_rng(0)
    log = pl.DataFrame(
        [
            {
                "seen": rng.integers(0, 9, n).tolist(),
                "item": int(rng.integers(0, 9)),
                "clicked": int(rng.integers(0, 2)),
            }
            for n in rng.integers(0, 12, 100)
        ],
        schema_overrides={"seen": pl.List(pl.Int64)},
    )
    log.write_parquet(tmp_path / "log.parquet")
    flags = (
        f"--log={tmp_path / 'log.parquet'}", "--history=seen:item", "--candidates=item",
        "--label=clicked",
        "--encoder=hstu", "--layers=1", "--max_length=8", "--epochs=1", "--batch_size=16",
        "--width=4", "--mlp=8", f"--workdir={tmp_path / 'w'}", f"--export={tmp_path / 'model'}",
    )  # fmt: skip
    result = run("--mesh=1x1", *flags, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "100 requests with a mean of 1.0 candidates" in result.stdout
    model = read_model(tmp_path / "model")
    kept = model.encode({"seen": [3, 1, 77]})
    scores = model.score(kept, {"item": [1, 5, 7, 88, 99]}, {})
    assert scores[3] == scores[4]  # both are new
    assert len(set(scores.tolist())) == 4
    again = run("--mesh=1x1", *flags, program=PROGRAM)
    assert again.returncode == 2
    assert "export: expected a directory to make" in again.stderr
    assert len(list((tmp_path / "w" / "requests").glob("*/labels.npy"))) == 1


def test_flags_that_are_refused():
    for flags, text in (
        (("--label=x",), "--label has no effect without --log"),
        (("--log=x.parquet", "--horizon=9"), "--horizon has no effect with --log"),
        (("--lengths=8", "--max_length=8"), "--max_length has no effect with --lengths"),
        (("--encoder=mean", "--layers=1"), "--layers has no effect with --encoder=mean"),
        (("--export=/proc/x/y",), "export: expected a directory that can be made, got /proc/x/y"),
        (("--seed=99999999999999999999",), "--seed: expected at most 9223372036854775807, got 9"),
        (
            ("--export=x", "--workdir=x"),
            "export: expected a directory that the run x isn't in, got x",
        ),
        (("--lengths=64,0",), "--max_length: expected at least 1, got 0"),
        (("--log=x.parquet",), "--history: expected at least one column, got none"),
    ):
        result = run(*flags, program=PROGRAM)
        assert result.returncode == 2
        assert text in result.stderr


def test_the_help_has_the_presets_of_this_program():
    result = run("--help", program=PROGRAM)
    assert "ctr_x1" not in result.stdout
    text = " ".join(result.stdout.split())
    assert "--batch_size Requests of a batch; such as 256. Default: 64." in text
