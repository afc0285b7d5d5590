"""The benchmark's report: every figure there, and consistent with the others."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from main_job import run
from quick_machine import quickly

from dlrm_jax.errors import UserError
from experiments.benchmarks.first_step import seconds_to_first_step

TABLES = ("--table_rows=3000,7,40", "--embedding_dim=8", "--bottom_mlp=16,8", "--top_mlp=8,1")
SMALL = (*TABLES, "--preset=small", "--batch_size=64", "--rounds=1", "--steps_per_round=2")


def benchmark(*flags: str):
    result = run(*SMALL, *flags, program=quickly("experiments.benchmarks.step"))
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_one_json_object():
    flags = ("--json", "--nofirst_step", "--mesh=1x2", "--against=1x1", "--optimizer=sgd")
    found = json.loads(benchmark(*flags))
    assert found["rows"] == 3000 + 7 + 40
    assert found["seconds_to_first_step"] is None
    assert found["examples_per_second"] == pytest.approx(64e3 / found["median_ms"])
    products = found["step_gflop"] / found["machine_gflops"]
    rows = found["step_row_mib"] / 2**10 / found["machine_row_gib_per_second"]
    assert found["roofline_ms"] == pytest.approx(1e3 * max(products, rows))
    assert found["roofline_share"] == pytest.approx(found["roofline_ms"] / found["median_ms"])
    for other, ratio in (("fewer_rows", "rows_ratio"), ("against", "mesh_ratio")):
        median = found[f"{other}_median_ms"]  # of one round
        assert found[ratio] == pytest.approx(found["median_ms"] / median)
    assert found["core_round_trip_us"] == {"min": 0.5, "max": 0.5}
    held = found["tables_and_state_gib"]
    assert held * 2**30 >= found["rows"] * 8 * 4
    assert found["bound_gib"] == pytest.approx(1.15 * held + 0.7)
    assert found["peak_gib"] > held
    # Forward and twice as much on the way back, but for the first layer's input.
    mlps = ((13, 16, 8), (8 + 4 * 3 // 2, 8, 1))
    products = sum(a * b for widths in mlps for a, b in itertools.pairwise(widths))
    interaction = 4 * 4 * 8
    multiplications = 3 * products - mlps[0][0] * mlps[0][1] + 2 * interaction
    assert found["step_gflop"] * 1e9 == 2 * 64 * multiplications


@pytest.mark.thorough
def test_predictions_in_lines():
    lines = benchmark("--mode=infer", "--nofirst_step")
    found = dict(line.split(None, 1) for line in lines.splitlines())
    assert found["mode"] == "infer"
    assert float(found["median_ms"]) > 0
    assert found["seconds_to_first_step"] == "None"


@pytest.mark.thorough
def test_seconds_to_the_first_step():
    flags = [*TABLES, "--examples=2000", "--batch_size=64", "--evaluation_batch_size=64"]
    result = run(*flags, program=("-m", "experiments.benchmarks.first_step"))
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    assert found.keys() == {"cold", "warm"}
    assert 0 < found["warm"] < found["cold"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--rounds=0", "there is no flag --rounds"),
        ("--eval_every=5", "--eval_every .*the first step"),
    ],
)
def test_flags_that_the_first_step_does_not_read_are_refused(flag: str, message: str):
    result = run(flag, program=("-m", "experiments.benchmarks.first_step"))
    assert result.returncode == 2
    assert re.match(f"error: {message}", result.stderr)


def test_a_main_job_that_fails_says_why():
    with pytest.raises(
        UserError, match=r"dlrm_jax train --steps=x .*--steps: expected an integer, got 'x'"
    ):
        seconds_to_first_step(["--steps=x"])
