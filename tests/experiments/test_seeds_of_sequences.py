"""The table of runs that differ in their seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_job import run

PROGRAM = ("-m", "experiments.next_item.seeds")


def write(directory: Path, value: float) -> str:
    directory.mkdir()
    model = {"model": {"hr@10": value, "ndcg@10": value / 2}}
    summary = json.dumps({"validation": model, "test": model})
    (directory / "summary.json").write_text(summary, encoding="utf-8")
    return str(directory)


def test_runs_of_one_model_are_averaged(tmp_path: Path):
    values = {"sasrec-1": 0.1, "sasrec-2": 0.3, "hstu-1": 0.25}
    runs = [write(tmp_path / name, value) for name, value in values.items()]
    result = run(f"--runs={','.join(runs)}", "--metrics=hr@10", program=PROGRAM)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    deviation = f"{np.std([0.1, 0.3], ddof=1):.4f}"
    assert lines[1] == ["sasrec", "2", *["0.2000", "±", deviation] * 2]
    assert lines[2] == ["hstu", "1", "0.2500", "0.2500"]


def test_what_is_no_run(tmp_path: Path):
    result = run(f"--runs={tmp_path}", program=PROGRAM)
    assert result.returncode == 2
    assert "summary.json: expected the summary of a run of experiments.next_item" in result.stderr
    result = run(f"--runs={write(tmp_path / 'x-1', 1.0)}", "--metrics=mrr", program=PROGRAM)
    assert "has no number 'mrr'; it has hr@10, ndcg@10" in result.stderr
    twice = f"{tmp_path}/x-1,{tmp_path}/./x-1"
    result = run(f"--runs={twice}", program=PROGRAM)
    assert "--runs: expected each run once, got " in result.stderr


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"strata": {"rare": 0.1}, "hr@10": 0.2}, "has no number 'strata'; it has hr@10"),
        ({"strata": None, "hr@10": 0.2}, "has no number 'strata'; it has hr@10"),
        (None, "summary.json: test: expected metrics of the model, got None"),
    ],
)
def test_what_is_no_number(model: Any, message: str, tmp_path: Path):
    text = json.dumps({"test": {"model": model}})
    (tmp_path / "summary.json").write_text(text, encoding="utf-8")
    result = run(f"--runs={tmp_path}", "--metrics=strata", program=PROGRAM)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_run_without_questions_for_validation_shows_its_test(tmp_path: Path):
    text = json.dumps({"test": {"model": {"hr@10": 0.2}}})
    (tmp_path / "summary.json").write_text(text, encoding="utf-8")
    result = run(f"--runs={tmp_path}", "--metrics=hr@10", program=PROGRAM)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].split()[1:] == ["1", "0.2000"]
