"""What comes from someone else is read: it runs no code and leads to no other folder."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_jax.data.directory import load_directory
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.metadata import read_metadata

ROOT = Path(__file__).parents[2]
PREPARED = ROOT / "tests" / "previous" / "data"
CHECKPOINT = ROOT / "tests" / "previous" / "run" / "checkpoints" / "00000006"
CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from dlrm_jax.models.dlrm import DLRM
class Mine(DLRM): pass
"""


def changed(directory: Path, **changes: Any) -> Path:
    """A checkpoint with other metadata."""
    copy = shutil.copytree(CHECKPOINT, directory / CHECKPOINT.name)
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | changes))
    return copy


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose model is a class of a module that can be imported."""
    (tmp_path / "not_ours.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "not_ours", raising=False)
    fields = read_metadata(CHECKPOINT)["config"] | {"model": "not_ours:Mine"}
    return changed(tmp_path, config=fields)


def test_code_that_a_checkpoint_names_is_not_run(named: Path):
    mesh = make_mesh("1x1")
    with pytest.raises(UserError, match=r"names not_ours:Mine .*\(--model=not_ours:Mine\)"):
        Predictor.load(named, mesh)
    with pytest.raises(UserError, match="names 'not_ours:Mine', got 'others:Mine'"):
        Predictor.load(named, mesh, model="others:Mine")
    assert not named.with_name("ran").exists()
    Predictor.load(named, mesh, 64, "not_ours:Mine")
    assert named.with_name("ran").exists()


@pytest.mark.parametrize("item", ["../../x", "/etc", "0/../1"])
def test_tables_do_not_lead_elsewhere(tmp_path: Path, item: str):
    arrays = read_metadata(CHECKPOINT)["arrays"]
    arrays["C2/weights"]["item"] = item
    copy = changed(tmp_path, arrays=arrays)
    with pytest.raises(UserError, match=rf"{re.escape(str(copy))} is damaged.*has no arrays"):
        Predictor.load(copy, make_mesh("1x1"))


def test_nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, fail)
    Predictor.load(CHECKPOINT, make_mesh("1x1"), 64)
    load_directory(PREPARED)
    copy = shutil.copytree(PREPARED, tmp_path / "data")
    for name in ("dense", "sparse", "labels"):
        path = copy / f"day_1_{name}.npy"
        before = path.read_bytes()
        np.save(path, np.array([{}] * 70, object), allow_pickle=True)
        with pytest.raises(UserError, match="day 1 can't be read"):
            load_directory(copy)
        path.write_bytes(before)
    np.savez(copy / "day_0_sparse_multi_hot.npz", np.array([{}] * 70, object))
    with pytest.raises(UserError, match="objects can't be mapped"):
        load_directory(copy)


def test_no_source_asks_for_pickles():
    asked = re.compile(
        r"^\s*(import|from) (\w*pickle|marshal|shelve|dill)|allow_pickle=(?!False)", re.M
    )
    for folder in ("dlrm_jax", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not asked.search(path.read_text(encoding="utf-8")), path
