"""Trials of a user's class are told from those before a change of its source."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import experiments.compare.trials as trials
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.build import generate_data
from experiments.compare.model_source import source_hash
from experiments.compare.tasks import Clicks

FILES = {
    "mine/__init__.py": "",
    "mine/models.py": "from .layers import deep\nimport beside, jax\nclass Model: ...\n",
    "mine/layers/__init__.py": "from ..sizes import *\n",
    "mine/layers/deep.py": "def late():\n    import mine.late\n",
    "mine/sizes.py": "A = 1\n",
    "mine/late.py": "B = 1\n",
    "beside.py": "C = 1\n",
    "jax.py": "",  # not the one that is imported, but it would be
    "other.py": "",
    "mine/other.py": "",
}
RESULT = {"train": None, "validation": {"auc": 0.7}, "test": None, "curve": []}
UNUSED = ("other.py", "mine/other.py")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("mine", "mine.models", "mine.layers", "mine.layers.deep", "mine.sizes", "beside"):
        sys.modules.pop(name, None)


def test_each_file_that_is_imported_counts(directory: Path):
    before = source_hash("mine.models:Model")
    for name in FILES:
        (directory / name).write_text(FILES[name] + "# changed\n")
        assert (source_hash("mine.models:Model") == before) == (name in UNUSED), name
        (directory / name).write_text(FILES[name])
    assert source_hash("mine.models:Model") == before


def test_what_has_no_source():
    assert source_hash("dlrm") is None
    with pytest.raises(UserError, match="expected itertools to have a Python file"):
        source_hash("itertools:count")


def test_a_trial_is_run_again_when_the_class_has_changed(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = []
    monkeypatch.setattr(trials, "run_trial", lambda *_: ran.append(1) or RESULT)
    task = Clicks(generate_data(Config(table_rows=(5,), examples=100)))
    study = trials.Study(Config(), task, make_mesh("1x1"), 1, tmp_path / "trials")
    counts = []
    for text in ("C = 1\n", "C = 1\n", "C = 2\n"):
        (directory / "beside.py").write_text(text)
        for model in ("mine.models:Model", "dlrm"):
            study.trial(Config(model=model))
        counts.append(len(ran))
    assert counts == [2, 2, 3]


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
