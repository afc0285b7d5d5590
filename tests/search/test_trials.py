"""Trials as runs: killed ones go on from their checkpoints, and the test split is left alone."""

from __future__ import annotations

import dataclasses
import gc
import re
from pathlib import Path

import pytest

from dlrm_jax.data.arrays import Split
from dlrm_jax.mesh import make_mesh
from dlrm_jax.presets import preset
from dlrm_jax.search.grammar import parse_space
from dlrm_jax.search.identity import Identity
from dlrm_jax.search.study import Study, Trial
from dlrm_jax.search.trials import Setting, run_trials
from dlrm_jax.training.build import generate_data

CONFIG = dataclasses.replace(
    preset("small"),
    model="logistic_regression",
    table_rows=(7, 40),
    dense_features=2,
    examples=2000,
    batch_size=64,
    steps=16,
    eval_every=8,
    checkpoint_every=8,
)
SPACE = parse_space("learning_rate=0.05|0.2")


class Killed(BaseException):
    """The end of a process, in the place of SIGKILL."""


@pytest.fixture(scope="module")
def setting() -> Setting:
    data = generate_data(CONFIG)
    without_test = dataclasses.replace(data, test=Unread(data.test.days))
    return Setting(CONFIG, without_test, None, make_mesh("1x1"))


class Unread(Split):
    """A split that nothing may read."""

    def __getitem__(self, rows):
        raise AssertionError("the test split chooses nothing")


def searched(directory: Path, setting: Setting) -> tuple[Study, list[str]]:
    study = Study(directory, SPACE, Identity(setting.data.fingerprint, {}), True, "random")
    lines: list[str] = []
    run_trials(study, setting, 1, lines.append)
    return study, lines


def test_a_killed_trial_goes_on(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    unbroken, _ = searched(tmp_path / "unbroken", dataclasses.replace(setting, workdirs=False))
    assert not (tmp_path / "unbroken" / "trials").exists()
    report = Trial.report

    def killed(self: Trial, step: int, examples: int, metric: float) -> bool:
        ended = report(self, step, examples, metric)
        if step == 16:
            raise Killed
        return ended

    monkeypatch.setattr(Trial, "report", killed)
    with pytest.raises(Killed):
        searched(tmp_path / "broken", setting)
    monkeypatch.undo()
    gc.collect()  # locks end with the process
    broken, lines = searched(tmp_path / "broken", setting)
    assert re.fullmatch(r"trial 0: goes on with learning_rate=.*", lines[0])
    assert re.fullmatch(r"trial 0: resuming from step 8 in .*", lines[1])
    results = [dataclasses.replace(x.findings()[0], seconds=None) for x in (broken, unbroken)]
    assert results[0] == results[1]
    assert results[0].outcome == "complete"
    (directory,) = (tmp_path / "broken" / "trials").iterdir()
    assert {each.name for each in directory.iterdir()} == {"metrics.jsonl", ".lock"}
