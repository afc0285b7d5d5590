"""Evaluation of a model on data with labels, and what fading costs there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.data.directory import load_directory
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.metrics import METRICS, binary_metrics

PREVIOUS = Path(__file__).parents[1] / "previous"
RUN = PREVIOUS / "run_of_format_3"
LOG = PREVIOUS / "raw.csv"
EVALUATE = pytest.mark.parametrize("program", ["dlrm_jax.cli.evaluate"], indirect=True)


def evaluate(program: ModuleType, *flags: str) -> None:
    cli_flags.parse(["evaluate", "--batch_size=256", *flags])
    program.__dict__["start"] = make_mesh  # without another cache of compiled programs
    program.main()


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    path = tmp_path / "fade.json"
    page = [["2026-11-01T00:00:00Z", 1], ["2026-11-15T00:00:00Z", 0]]
    age = [["2026-11-01T00:00:00Z", 0.5]]
    path.write_text(json.dumps({"features": {"page": page, "age": age}}))
    return path


@EVALUATE
def test_a_faded_feature_costs_what_missing_values_do(
    program: ModuleType, artifact: Path, schedule: Path, capsys: pytest.CaptureFixture[str]
):
    evaluate(program, f"--checkpoint={artifact}", f"--data={LOG}", f"--fade={schedule}")
    rows, header, *lines = capsys.readouterr().out.splitlines()
    assert rows == "210 rows of the logs, in 4 states"
    assert header.split() == [*METRICS, "examples", "cost", "in", "NE"]
    # At the first time, age alone is faded, which stands there already.
    assert [x.split()[:2] for x in lines[:3]] == [["all", "covered"], ["page", "0"], ["age", "0.5"]]
    assert lines[3].startswith("2026-11-15T00:00:00Z ")
    log, predictor = pl.read_csv(LOG), Predictor.load(artifact, batch_size=256)
    found = {}
    for line, frame in (
        (lines[0], log),
        (lines[1], log.with_columns(page=pl.lit(None, pl.String))),
    ):
        probabilities = predictor.predict(frame)
        logits = np.log(probabilities / (1 - probabilities))
        expected = binary_metrics(logits, log["click"].to_numpy().astype(np.float64))
        texts = [f"{expected[x]:.5f}" for x in METRICS]
        assert [*texts, "210"] == line.split()[2:8]
        found[line] = expected["normalized_entropy"]
    covered, faded = found.values()
    assert lines[1].split()[-1] == f"{faded / covered - 1:+.3%}"


@EVALUATE
def test_a_split_of_arrays(program: ModuleType, capsys: pytest.CaptureFixture[str]):
    evaluate(program, f"--checkpoint={RUN}", f"--data={PREVIOUS / 'data'}", "--split=validation")
    *_, rows, header, line = capsys.readouterr().out.splitlines()
    split = load_directory(PREVIOUS / "data").validation
    assert rows == f"{len(split)} rows of the validation split"
    assert header.split() == [*METRICS, "examples"]
    logits = np.concatenate([*Predictor.load(RUN, batch_size=256).logits(split)])
    expected = binary_metrics(logits, split.labels)
    assert line.split()[:2] == ["all", "features"]
    assert line.split()[2:] == [*(f"{expected[x]:.5f}" for x in METRICS), str(len(split))]


@EVALUATE
def test_metrics_of_groups(program: ModuleType, capsys: pytest.CaptureFixture[str]):
    """GAUC is that of loops over pairs: groups count by their rows, if they have both labels."""
    arrays = [f"--checkpoint={RUN}", f"--data={PREVIOUS / 'data'}"]
    evaluate(program, *arrays, "--metrics=gauc:C2,calibration_by:C2")
    *_, header, line = capsys.readouterr().out.splitlines()
    extra = ["gauc:C2", "calibration_by:C2", "calibration_by:C2:worst"]
    assert header.split() == [*METRICS, *extra, "examples"]
    data = load_directory(PREVIOUS / "data")
    split, place = data.splits["test"], sum(data.bag_lengths[:1])  # of the second feature
    logits = np.concatenate([*Predictor.load(RUN, batch_size=256).logits(split)])
    ids = np.concatenate([day.ids for day in split.days])
    cities, labels = ids[:, place], split.labels
    above = rows = 0.0
    for city in set(cities):
        own = np.flatnonzero(cities == city)
        pairs = [(logits[i], logits[j]) for i in own for j in own if labels[i] > labels[j]]
        if pairs:
            rows += len(own)
            above += len(own) * np.mean([(x > y) + (x == y) / 2 for x, y in pairs])
    assert 1 < rows < len(split) + 1
    assert line.split()[2 + len(METRICS)] == f"{above / rows:.5f}"


@EVALUATE
def test_what_it_refuses(program: ModuleType, schedule: Path, tmp_path: Path):
    shutil.copytree(RUN / "checkpoints", tmp_path / "run" / "checkpoints")
    other = tmp_path / "other.json"
    other.write_text(schedule.read_text().replace("page", "pages"))
    arrays = f"--data={PREVIOUS / 'data'}"
    for flags, message in (
        ([f"--checkpoint={RUN}"], "--data is missing"),
        (
            [f"--checkpoint={RUN}", f"--data={LOG}", "--split=test"],
            "--split has no effect with raw",
        ),
        ([f"--checkpoint={RUN}", arrays, f"--fade={other}"], "age, page, city, word, got 'pages'"),
        ([f"--checkpoint={tmp_path / 'run'}", arrays, f"--fade={schedule}"], "--fade: .* without"),
        ([f"--checkpoint={RUN}", arrays, "--metrics=gauc:x"], "gauc:x: the rows have no column"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(program, *flags)
        for name in ("data", "split", "fade", "metrics"):
            cli_flags.FLAGS[name].unparse()
