"""Trials that are stored, and run again only where their numbers would be others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import experiments.compare.trials as trials
from dlrm_jax.config import Config
from dlrm_jax.errors import CopiesDifferError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.config_data import generate_data
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.source_hash import source_hash
from experiments.compare.tasks import Clicks

RESULT = {"train": None, "validation": {"auc": 0.7}, "test": None, "curve": []}


def test_a_trial_is_run_again_when_own_code_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = []
    monkeypatch.setattr(trials, "run_trial", lambda *_: ran.append(1) or RESULT)
    monkeypatch.syspath_prepend(tmp_path)
    task = Clicks(generate_data(Config(table_rows=(5,), examples=100)))
    study = trials.Study(Config(), task, make_mesh("1x1"), 1, tmp_path / "trials")
    counts = []
    for text in ("C = 1\n", "C = 1\n", "C = 2\n"):
        (tmp_path / "own_code.py").write_text(text)
        source_hash.cache_clear()  # as a new process has it
        for config in (Config(model="own_code:C"), Config(loss="own_code:C"), Config()):
            study.trial(config)
        counts.append(len(ran))
    assert counts == [3, 3, 5]


def test_copies_that_differ_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def differ(*_: Any) -> None:
        raise CopiesDifferError("the copies differ")

    base = Config(table_rows=(5,), dense_features=1, examples=100, batch_size=16, steps=1)
    base = dataclasses.replace(base, bottom_mlp=(2,), embedding_dim=2, top_mlp=(1,))
    study = trials.Study(base, Clicks(generate_data(base)), make_mesh("2x1"), 1, tmp_path)
    monkeypatch.setattr(Learner, "check_copies", differ)
    with pytest.raises(CopiesDifferError, match="after step 1, the copies differ"):
        study.trial(base)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "{}", "", "[]", '{"trial": {}}', "\0\0"])
def test_a_damaged_trial_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: str
):
    monkeypatch.setattr(trials, "run_trial", lambda *_: RESULT)
    task = Clicks(generate_data(Config(table_rows=(5,), examples=100)))
    study = trials.Study(Config(), task, make_mesh("1x1"), 1, tmp_path)
    found = study.trial(Config())
    [path] = tmp_path.iterdir()
    text = path.read_text()
    path.write_text(content)
    assert study.trial(Config()) == found
    assert path.read_text() == text
    assert f"{path} is damaged: the trial is run again" in caplog.text
