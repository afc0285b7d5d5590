"""What a run writes is there with its checkpoints, or the run ends with one message."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dlrm_jax import training
from dlrm_jax.errors import UserError
from dlrm_jax.training import orbax_io
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.record import Record
from dlrm_jax.workspaces import MARKER


def test_a_workdir_that_has_been_moved_does_not_come_up_anew(tmp_path: Path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with Record(workdir / "metrics.jsonl", 0) as record:
        record(1, "train", {"loss": 0.5})
        workdir.rename(tmp_path / "moved")
        workdir.mkdir()
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
            record(2, "train", {"loss": 0.4})
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
            record.flush()
    assert list(workdir.iterdir()) == []


def test_deletions_that_were_killed_are_swept(tmp_path: Path):
    killed = tmp_path / ".00000010.deleted.dlrm_jax"
    (killed / "00000010").mkdir(parents=True)
    (killed / MARKER).touch()
    Checkpoints(tmp_path, {}).prepare()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "reason"),
    [(None, "ModuleNotFoundError: import of orbax"), (ModuleType("old"), "ImportError: cannot")],
)
def test_orbax_is_looked_for_before_the_training(
    found: ModuleType | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that is missing or broken would else end it at the first checkpoint."""
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", found)
    monkeypatch.delitem(sys.modules, orbax_io.__name__)
    monkeypatch.delattr(training, "orbax_io")
    with pytest.raises(UserError, match=rf"need Orbax, which can't be imported \({reason}"):
        Checkpoints(tmp_path / "checkpoints", {}).prepare()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_is_one_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        orbax_io.save(tmp_path / "file" / "dense", {"a": np.arange(3)})
    assert capfd.readouterr().err == ""
