"""``dlrm_jax tables`` and ``dlrm_jax prune``, and a run that goes on without some of its ids."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from main_job import run, summary

from dlrm_jax.errors import UserError

PREVIOUS = Path(__file__).parents[1] / "previous"
SMALL = (
    "--table_rows=7,600,40", "--examples=2000", "--embedding_dim=8", "--bottom_mlp=8",
    "--top_mlp=8,1", "--batch_size=64", "--evaluation_batch_size=512", "--eval_every=0",
    "--mesh=1x2", "--emulate",
)  # fmt: skip
TRAIN = ("-m", "dlrm_jax", "train", *SMALL)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "run"
    done = run("--dynamic_ids=C2=200", "--steps=20", f"--workdir={workdir}", program=TRAIN)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.thorough  # by default `test_pruning.py` goes on with one
def test_a_pruned_run_goes_on(
    command, workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pruned = tmp_path / "pruned"
    rules = (f"--run={workdir}", "--min_count=3")
    command("prune", *rules)
    planned = capsys.readouterr().out
    assert "nothing is written without --output" in planned
    command("prune", *rules, f"--output={pruned}")
    said = capsys.readouterr().out
    assert said.splitlines()[:3] == planned.splitlines()[:3]
    assert f"see {pruned}/checkpoints/00000020; train with --workdir={pruned}" in said
    columns = said.splitlines()[2].split()
    ids, gone, left = (int(columns[i]) for i in (2, 3, 5))
    assert left == ids - gone + 1 < 200
    command("tables", f"--run={pruned}", "--json")
    tables = {x["table"]: x for x in json.loads(capsys.readouterr().out)["tables"]}
    assert (tables["C2"]["rows"], tables["C2"]["ids"]) == (left, left - 1)
    assert tables["C2"]["counts"]["0"] >= 3

    flags = ("--dynamic_ids=C2=150", "--steps=22", f"--workdir={pruned}")
    done = run(*flags, program=TRAIN)
    assert done.returncode == 0, done.stderr
    line = (
        f"ids of table C2: 150 rows, {left} in checkpoint 00000020; 0 of {left - 1} ids lose their"
    )
    assert line in done.stdout
    assert summary(pruned)["resumed_from"] == 20
    # The settings of the checkpoint are those of its tables: evaluation needs no flag.
    done = run(
        "--eval_only", f"--workdir={pruned}", "--emulate", program=("-m", "dlrm_jax", "train")
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.thorough
def test_a_table_in_bfloat16_is_pruned(command, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = ("--dynamic_ids=C2=200", "--table_dtype=bfloat16", "--steps=4")
    done = run(*flags, f"--workdir={tmp_path / 'run'}", program=TRAIN)
    assert done.returncode == 0, done.stderr
    pruned = tmp_path / "pruned"
    command("prune", f"--run={tmp_path / 'run'}", "--min_count=2", f"--output={pruned}")
    found = []
    for checked in (tmp_path / "run", pruned):
        capsys.readouterr()
        command("tables", f"--run={checked}", "--json")
        found.append({x["table"]: x for x in json.loads(capsys.readouterr().out)["tables"]})
    before, after = found
    assert after["C2"]["ids"] < before["C2"]["ids"]
    assert after["C1"] == before["C1"]  # its rows, read again


@pytest.mark.parametrize("output", ["new", "checkpoints/x", "checkpoints/00000020/x"])
def test_a_pruned_run_is_not_written_into_the_run(command, workdir: Path, output: str):
    path = workdir / output
    with pytest.raises(UserError, match=r"^--output: expected a path outside of .*/run, which"):
        command("prune", f"--run={workdir}", "--min_count=3", f"--output={path}")
    assert not path.exists()


@pytest.mark.parametrize("name", ["run", "run_of_format_3"])
def test_tables_of_a_run_without_dynamic_ids(
    command, capsys: pytest.CaptureFixture[str], name: str
):
    command("tables", f"--run={PREVIOUS / name}")
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"table +rows +ids +untrained +not finite +norm", lines[1])
    assert re.match(r"C1 +\d+ +- +\d+ +0 +[\d.]+ +[\d.]+ +- +-", lines[2])
    with pytest.raises(UserError, match=r"those of .* are none; train with --dynamic_ids"):
        command("prune", f"--run={PREVIOUS / name}", "--max_age=1")


def test_prune_needs_a_rule(command, workdir: Path):
    with pytest.raises(UserError, match="--min_count, --max_age and --min_norm are missing"):
        command("prune", f"--run={workdir}")
    with pytest.raises(UserError, match=r"--output: .* exists"):
        command("prune", f"--run={workdir}", "--max_age=1", f"--output={workdir}")
