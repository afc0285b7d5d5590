"""Which model a run gives, when it ends, and what it goes on with; its evaluations are scripted."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_job import arrays
from saved_run import CONFIG, examples

import dlrm_jax.run as module
from dlrm_jax import run_training
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run import Options, Outcome
from dlrm_jax.run_start import check_splits, which_checkpoint
from dlrm_jax.training import checkpoint, serialization
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.step import make_train_step

DATA = Dataset(
    examples(512),
    examples(90, seed=1),
    examples(70, seed=2),
    CONFIG.table_rows,
    CONFIG.bag_lengths,
    "drawn",
    "drawn examples",
)
CUT = dataclasses.replace(
    CONFIG,
    table_optimizers=("C1=adam:0.05", "C3=sgd:4"),
    log_every=1,
    eval_every=1,
    checkpoint_every=3,
    keep_checkpoints=9,
    check_copies_every=0,
    plateau_factor=0.5,
    plateau_patience=1,
    patience=3,
    steps=8,
)


class Script:
    """Evaluations whose AUC is a function of the step, and what was evaluated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, aucs: Mapping[int, float]):
        self.aucs, self.evaluated, self.factors = aucs, [], []
        self.further: dict[str, float] = {}
        self.said: list[str] = []
        self._learner, self._step = trained()
        monkeypatch.setattr(module, "evaluate", self.evaluate)
        for each in (checkpoint, serialization):  # so small a model has none to release
            monkeypatch.setattr(each, "release_memory", lambda: None)
        monkeypatch.setattr(run_training, "make_train_step", lambda learner: self.step)

    def step(self, state: Any, batch: Any, factor: Any) -> Any:
        self.factors.append(float(factor))
        return self._step(state, batch, factor)

    def evaluate(
        self, learner: Any, predict: Any, state: Any, rows: Split, size: int, measure: Any
    ) -> Any:
        step = int(state.step)
        splits = {id(split): name for name, split in DATA.splits.items()}
        name = splits.get(id(rows), f"some {len(rows)}")
        self.evaluated.append((name, step))
        return {"auc": self.aucs[step] + (name == "test"), "examples": len(rows)} | self.further

    def run(self, workdir: Path | None, options: Options | None = None, **changes: Any) -> Outcome:
        self.evaluated, self.factors, self.said = [], [], []
        config, options = dataclasses.replace(CUT, **changes), options or Options(workdir)
        return module.run(config, DATA, self._learner, options, self.said.append)


@functools.cache
def trained() -> tuple[Learner, Any]:
    """What all runs share, so that one step is compiled."""
    learner = make_learner(CUT, make_mesh("1x2"))
    return learner, make_train_step(learner)


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


AUCS = {1: 0.5, 2: 0.6, 3: 0.5, 4: 0.4, 5: 0.3, 6: 0.5, 7: 0.5, 8: 0.5}


def test_the_best_model_is_given_and_a_killed_run_goes_on_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = Script(monkeypatch, AUCS)
    workdir, killed = tmp_path / "unbroken", tmp_path / "killed"
    outcome = script.run(workdir)
    assert script.factors == [1, 1, 1, 0.5, 0.25], "the learning rate is cut after steps 3 and 4"
    assert script.evaluated == [
        *(("validation", step) for step in range(1, 6)), ("test", 5), ("some 90", 2), ("test", 2)
    ]  # fmt: skip
    written = json.loads((workdir / "summary.json").read_text())
    assert (written["steps"], written["best_step"], written["stopped_early"]) == (5, 2, True)
    assert (written["test"]["auc"], written["test_of_last"]["auc"]) == (1.6, 1.3)
    assert written["validation"]["auc"] == 0.6
    assert int(outcome.state.step) == 2
    assert outcome.noted["improvement"]["best"] == 0.6
    of_test = [(x["split"], x["step"]) for x in lines(workdir) if x["split"].startswith("test")]
    assert of_test == [("test_of_last", 5), ("test", 2)]

    shutil.copytree(workdir, killed)
    shutil.rmtree(killed / "checkpoints" / "00000005")
    script.run(killed)
    assert script.factors == [0.5, 0.25]
    again = json.loads((killed / "summary.json").read_text())
    of_this_run = {"resumed_from", "examples_per_second"}
    assert {x: y for x, y in again.items() if x not in of_this_run} == {
        x: y for x, y in written.items() if x not in of_this_run
    }
    assert lines(killed) == lines(workdir)
    expected, found = arrays(workdir, 5), arrays(killed, 5)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)

    # It has ended, until it gets more patience.
    script.run(killed)
    assert script.factors == []
    assert script.said[-1].endswith(
        "has 5 steps of 8 already, and isn't trained further: auc was not better in 3 "
        "evaluations (patience)"
    )
    assert json.loads((killed / "summary.json").read_text())["stopped_early"]
    # A best checkpoint that is damaged is set aside, and the next one is the best.
    table = max((killed / "checkpoints/00000002/tables").rglob("*"), key=lambda x: x.stat().st_size)
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    outcome = script.run(killed, patience=9)
    assert len(script.factors) == 3
    assert (outcome.summary["best_step"], outcome.summary["stopped_early"]) == (1, False)
    assert (killed / "checkpoints" / "00000002.damaged").exists()


def test_a_run_whose_last_model_is_the_best_is_evaluated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = Script(monkeypatch, {1: 0.5, 2: 0.6})
    summary = script.run(tmp_path / "w", steps=2).summary
    assert (summary["steps"], summary["best_step"], summary["stopped_early"]) == (2, 2, False)
    assert summary["test"] == summary["test_of_last"]
    assert script.evaluated[1:] == [("validation", 2), ("some 90", 2), ("test", 2)]
    of_test = [x["split"] for x in lines(tmp_path / "w") if x["split"].startswith("test")]
    assert of_test == ["test"]


def test_a_run_that_has_ended_gets_a_metric_that_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = Script(monkeypatch, {1: 0.6, 2: 0.5})
    script.run(tmp_path, steps=2)
    script.run(tmp_path, steps=2)
    assert ("validation", 1) not in script.evaluated, "its checkpoint notes it"
    script.further = {"gauc:C1": 0.7}
    summary = script.run(tmp_path, steps=2, metrics=("gauc:C1",)).summary
    assert summary["validation"] == {"auc": 0.6, "examples": 90, "gauc:C1": 0.7}


def test_without_files_the_last_model_is_given(monkeypatch: pytest.MonkeyPatch):
    script = Script(monkeypatch, {1: 0.6, 2: 0.5})
    outcome = script.run(None, steps=2)
    assert (outcome.summary["best_step"], int(outcome.state.step)) == (None, 2)
    assert outcome.summary["test"]["auc"] == outcome.summary["test_of_last"]["auc"] == 1.5


def test_a_sample_of_a_large_validation_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = Script(monkeypatch, {1: 0.6, 2: 0.5})
    outcome = script.run(tmp_path, steps=2, validation_examples=10)
    assert "validation during training: 10 of 90 examples, evenly spaced; all at the end" in (
        script.said
    )
    assert script.evaluated == [
        ("some 10", 1), ("some 10", 2), ("test", 2), ("some 90", 1), ("validation", 1), ("test", 1)
    ]  # fmt: skip
    assert outcome.summary["validation"]["examples"] == 90
    assert outcome.noted["validation"]["examples"] == 10, "to compare with, if the run goes on"
    script.run(tmp_path, Options(tmp_path, evaluate_only="latest"), validation_examples=10)
    assert any(line.endswith("=best evaluates step 1, as predict does") for line in script.said)


def test_a_metric_that_is_not_a_number_chooses_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = Script(monkeypatch, {1: float("nan")})
    assert script.run(tmp_path, steps=1).summary["best_step"] is None
    assert [line for line in script.said if "the best" in line] == [
        "warning: auc is nan in validation; no checkpoint is the best, the last counts"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_metric": "log_loss"}, "best_metric: it needs examples .* got log_loss; leave it"),
        ({"validation_examples": 9}, "validation_examples: it needs examples .* got 9; leave it"),
        ({"patience": 3}, "patience: it needs examples for validation, .* none, got 3; leave it"),
    ],
)
def test_settings_that_need_validation(changes: dict[str, Any], message: str):
    data = dataclasses.replace(DATA, validation=DATA.validation[:0])
    assert check_splits(CONFIG, data) == ["validation"]
    with pytest.raises(UserError, match=message):
        check_splits(dataclasses.replace(CONFIG, **changes), data)
    sampled = dataclasses.replace(CONFIG, validation_examples=9)
    assert check_splits(sampled, data, new=False) == ["validation"], "as earlier versions took it"
    by_loss = dataclasses.replace(CONFIG, best_metric="log_loss", validation_examples=9)
    assert check_splits(by_loss, data, inherited=True) == ["validation"], "of the run before"


def test_an_evaluation_says_which_checkpoint_it_is_of():
    other = "the latest checkpoint; --checkpoint=best evaluates step 1, as predict does"
    assert which_checkpoint(2, latest=2, best=1) == other
    assert which_checkpoint(1, latest=2, best=1) == "the best checkpoint"
    assert which_checkpoint(2, latest=2, best=2) == "the best checkpoint, which is the latest, too"
    assert (
        which_checkpoint(2, latest=2, best=None) == "the latest checkpoint, as none was validated"
    )


@pytest.mark.parametrize(
    ("changes", "steps", "validated", "expected"),
    [
        ({"steps": 1000, "eval_every": 1000}, 1000, True, "1,000 steps are 37 epochs of 3,456 "
         "training examples, and a model may overfit; with eval_every=1000 only the last of 1,000 "
         "steps can be the best; make eval_every smaller, such as 27"),
        ({"steps": 1000, "eval_every": 300}, 1000, True, "1,000 steps are 37 epochs of 3,456 "
         "training examples, and a model may overfit; evaluations every 300 steps choose among 4 "
         "checkpoints"),
        ({"steps": 1000}, 1000, False, "1,000 steps are 37 epochs of 3,456 training examples, and "
         "a model may overfit; there is no validation"),
        ({"epochs": 2, "eval_every": 1000}, 54, True, "with eval_every=1000 only the last of 54 "
         "steps can be the best; make eval_every smaller, such as 27"),
        ({"steps": 540, "eval_every": 270}, 540, True, None),
        ({"epochs": 40, "eval_every": 27}, 1080, True, None),
        ({"epochs": 1, "eval_every": 1000}, 27, True, None),
    ],
)  # fmt: skip
def test_a_run_that_may_overfit_says_so(
    changes: dict[str, int], steps: int, validated: bool, expected: str | None
):
    config = dataclasses.replace(CONFIG, **{"steps": 0, "eval_every": 0, **changes})
    found = run_training.length_warning(config, steps, 27, 3456, validated)
    assert found == (expected and f"warning: {expected}")
