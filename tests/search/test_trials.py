"""Trials as runs: killed ones go on from their checkpoints, and the test split is left alone."""

from __future__ import annotations

import dataclasses
import gc
import re
from pathlib import Path

import numpy as np
import pytest

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.mesh import make_mesh
from dlrm_jax.presets import preset
from dlrm_jax.run import Options
from dlrm_jax.run_training import Say
from dlrm_jax.search import trials
from dlrm_jax.search.grammar import parse_space
from dlrm_jax.search.identity import Identity
from dlrm_jax.search.space import Space
from dlrm_jax.search.study import Study, Trial
from dlrm_jax.search.trials import Setting, run_trials
from dlrm_jax.training.config_data import for_data, generate_data
from dlrm_jax.training.learner import Learner

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


def searched(
    directory: Path, setting: Setting, space: Space = SPACE, count: int = 1
) -> tuple[Study, list[str]]:
    study = Study(directory, space, Identity(setting.data.fingerprint, {}), True, "random")
    lines: list[str] = []
    run_trials(study, setting, count, lines.append)
    return study, lines


def trained_at_once(config: Config, data: Dataset, learner: Learner, options: Options, say: Say):
    """What stands for `run`: a trial's settings are checked before it."""
    del config, data, learner, say
    assert options.watch
    options.watch(1, {"auc": 0.75})


def with_two_labels(data: Dataset) -> Dataset:
    """The examples with a click, and a purchase that doesn't need one."""

    def doubled(split: Split) -> Split:
        labels = [np.stack([day.labels, 1 - day.labels], axis=1) for day in split.days]
        pairs = zip(split.days, labels, strict=True)
        return Split(tuple(dataclasses.replace(day, labels=each) for day, each in pairs))

    splits = {name: doubled(split) for name, split in data.splits.items()}
    return dataclasses.replace(data, **splits, labels=("clicked", "purchased"))


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


def test_what_a_trial_can_not_do_with_the_data_is_refused(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The data are read once; what a model or a loss asks of them differs from trial to trial."""
    monkeypatch.setattr(trials, "run", trained_at_once)
    space = parse_space("loss=bce|pairwise:nope")
    study, _ = searched(tmp_path / "loss", setting, space, 2)
    found = {each.values["loss"]: each for each in study.findings()}
    assert found["bce"].outcome == "complete"
    assert found["pairwise:nope"].outcome == "refused"
    assert found["pairwise:nope"].reason.startswith("loss: pairwise:nope ")

    data = with_two_labels(setting.data)
    base = dataclasses.replace(CONFIG, model="shared_bottom", label_weights=(1.0, 0.5))
    both = dataclasses.replace(setting, data=data, config=for_data(base, data))
    space = parse_space("model=shared_bottom|esmm|fm,loss=bce|listwise:C1")
    study, _ = searched(tmp_path / "model", both, space, 6)
    found = {(x.values["model"], x.values["loss"]): x for x in study.findings()}
    complete = [values for values, each in found.items() if each.outcome == "complete"]
    assert (complete, len(found)) == ([("shared_bottom", "bce")], 6)
    assert {each.outcome for each in found.values()} == {"complete", "refused"}
    for values, reason in (
        (("esmm", "bce"), "train, row 0 (from 0): expected labels of which each is 0 where"),
        (("fm", "bce"), "model: "),
        (("shared_bottom", "listwise:C1"), "loss: listwise:C1 compares examples by one label"),
    ):
        assert found[values].reason.startswith(reason)


def test_a_trial_that_ends_in_a_traceback_is_not_resumed(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*args: object):
        raise ZeroDivisionError("of the user's loss")

    monkeypatch.setattr(trials, "run", broken)
    with pytest.raises(ZeroDivisionError):
        searched(tmp_path, setting, count=2)
    monkeypatch.setattr(trials, "run", trained_at_once)
    study, lines = searched(tmp_path, setting, count=2)
    assert [each.outcome for each in study.findings()] == ["complete", "failed"]
    assert study.findings()[1].reason == "ZeroDivisionError: of the user's loss"
    assert lines[0].startswith("trial 1: ")
