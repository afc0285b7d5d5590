"""A run on data with a journal that is cut and resumed has the bits of one that wasn't."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_job import arrays
from shared_learners import shared_learner

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.run import run
from dlrm_jax.run_data import load_data
from dlrm_jax.run_start import Options
from dlrm_jax.training import journal
from dlrm_jax.training.journal_entry import read_entry

GIVEN = Config(
    table_rows=(7, 300, 40),
    dense_features=2,
    examples=2000,
    embedding_dim=8,
    bottom_mlp=(8,),
    top_mlp=(8, 1),
    batch_size=32,
    evaluation_batch_size=512,
    steps=40,
    log_every=1,
    eval_every=4,
    checkpoint_every=20,
)
CASES: Mapping[str, dict[str, Any]] = {
    "plain": {"placements": ("C2=row_wise",)},
    # The learning rate is cut a few times.
    "stopping": {
        "best_metric": "normalized_entropy",
        "patience": 6,
        "plateau_factor": 0.5,
        "plateau_patience": 1,
        "learning_rate": 3.0,
    },
    "dynamic": {"optimizer": "adam", "dynamic_ids": ("C2=90",), "pipelined": True, "steps": 24},
}


class CutError(Exception):
    """What ends a run at once, as a kill does: nothing is saved."""


def train(workdir: Path, case: str, cut: int | None = None, **changes: Any) -> list[str]:
    """Trains with an entry after each step, and cuts it when a step would get its entry."""
    mesh, seconds = changes.pop("mesh", "1x2"), changes.pop("journal_seconds", 1e-9)
    config, data = load_data(dataclasses.replace(GIVEN, **CASES[case], **changes), None)
    said: list[str] = []
    options = Options(workdir, journal_seconds=seconds)
    with pytest.MonkeyPatch.context() as patch:
        write = journal.write_entry

        def write_or_cut(path: Path, entry: journal.Entry) -> str:
            if entry.step == cut:
                raise CutError
            return write(path, entry)

        patch.setattr(journal, "write_entry", write_or_cut)
        try:
            run(config, data, shared_learner(config, mesh), options, said.append)
        except CutError:
            said.append("cut")
    return said


def steps(workdir: Path) -> list[int]:
    return sorted(int(x.name) for x in workdir.glob("checkpoints/*") if x.name.isdecimal())


def entries(workdir: Path) -> list[int]:
    """The steps of the entries that are there."""
    return [read_entry(x)[0].step for x in sorted(workdir.glob("checkpoints/*.journal/0*"))]


def assert_same(workdir: Path, other: Path) -> None:
    assert steps(workdir)[-1] == steps(other)[-1]
    found, expected = (arrays(x, steps(x)[-1]) for x in (workdir, other))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    record = (other / "metrics.jsonl").read_text()
    assert (workdir / "metrics.jsonl").read_text() == record
    passing = ("resumed_from", "examples_per_second")
    summaries = [json.loads((x / "summary.json").read_text()) for x in (workdir, other)]
    for summary in summaries:
        for name in passing:
            del summary[name]
    assert summaries[0] == summaries[1]


@pytest.mark.thorough  # by default `tests/stream/test_journaled_stream.py` cuts and resumes one
@pytest.mark.parametrize("case", CASES)
def test_cut_and_resumed(case: str, tmp_path: Path):
    unbroken, workdir = tmp_path / "unbroken", tmp_path / "run"
    train(unbroken, case, journal_seconds=0.0)
    assert train(workdir, case, cut=15)[-1] == "cut"
    done = entries(workdir)[-1]
    assert done == 14
    first = steps(workdir)[-1]
    said = train(workdir, case, cut=19)
    assert f"resuming from step {first} and its journal to step 14 in" in "\n".join(said)
    if said[-1] == "cut":
        assert entries(workdir)[-1] == 18
    train(workdir, case)
    assert not list(workdir.glob("checkpoints/*.journal")), "the last checkpoint has all"
    assert_same(workdir, unbroken)


@pytest.mark.thorough
def test_evaluations_between_checkpoints_are_in_the_journal(tmp_path: Path):
    """Otherwise patience would begin anew, and the learning rate would be that of before."""
    unbroken = tmp_path / "unbroken"
    train(unbroken, "stopping", journal_seconds=0.0)
    lines = [json.loads(x) for x in (unbroken / "metrics.jsonl").read_text().splitlines()]
    cuts = [x["step"] for x in lines if x["split"] == "learning_rate"]
    assert cuts
    end = lines[-1]["step"]
    assert cuts[0] < end - 2
    workdir = tmp_path / "run"
    train(workdir, "stopping", cut=cuts[0] + 2)
    assert steps(workdir)[-1] < cuts[0], "no checkpoint knows of it"
    train(workdir, "stopping")
    assert_same(workdir, unbroken)


@pytest.mark.thorough
def test_a_run_that_has_its_steps_gets_the_checkpoint_of_its_journal(tmp_path: Path):
    train(tmp_path, "plain", cut=15)
    said = train(tmp_path, "plain", steps=14)
    assert any("has 14 steps of 14 already" in x for x in said)
    assert steps(tmp_path)[-1] == 14
    assert json.loads((tmp_path / "summary.json").read_text())["resumed_from"] == 14
    assert not entries(tmp_path)


@pytest.mark.thorough
def test_another_mesh_goes_on_from_the_same_state(tmp_path: Path):
    for name, mesh in (("same", "1x2"), ("other", "2x4")):
        train(tmp_path / name, "plain", cut=15)
        train(tmp_path / name, "plain", mesh=mesh, steps=14)
    found, expected = (arrays(tmp_path / name, 14) for name in ("other", "same"))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.thorough
def test_a_damaged_entry_ends_the_journal(tmp_path: Path):
    unbroken, workdir = tmp_path / "unbroken", tmp_path / "run"
    train(unbroken, "plain", journal_seconds=0.0)
    train(workdir, "plain", cut=15)
    last = max(workdir.glob("checkpoints/*.journal/0*"))
    last.write_bytes(last.read_bytes()[:-1])
    [warning] = [x for x in train(workdir, "plain") if x.startswith("warning: the journal")]
    assert "goes to step 13" in warning
    [aside] = workdir.glob("checkpoints/*.journal.damaged")
    assert [x.name for x in aside.iterdir()] == [last.name]
    assert_same(workdir, unbroken)


@pytest.mark.thorough
def test_a_full_disk_ends_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unbroken, workdir = tmp_path / "unbroken", tmp_path / "run"
    train(unbroken, "plain", journal_seconds=0.0)

    def fail(path: Path, entry: journal.Entry) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_entry", fail)
        with pytest.raises(UserError, match="cannot write entry 1 of"):
            train(workdir, "plain")
    train(workdir, "plain")
    assert_same(workdir, unbroken)
