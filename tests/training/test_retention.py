"""Which checkpoints there are, which are kept, and what isn't touched beside them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from saved_run import learner_on, save

from dlrm_jax.errors import UserError
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.metadata import read_metadata, write_metadata
from dlrm_jax.training.record import owned
from dlrm_jax.training.retention import Retention

PARTS = {"identity": {}, "params": {}, "arrays": {}}


def add(directory: Path, step: int, auc: Any = None) -> Path:
    """A checkpoint of a step, whole but for the arrays."""
    checkpoint = directory / f"{step:08d}"
    (checkpoint / "dense").mkdir(parents=True)
    (checkpoint / "dense" / "x").write_text("x")
    validation = None if auc is None else {"auc": auc}
    write_metadata(checkpoint, {**PARTS, "step": step, "validation": validation})
    return checkpoint


def retention(directory: Path) -> Retention:
    return Retention(directory, keep=1, best_metric="auc")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_that_is_not_there_is_made_and_another_thing_is_refused(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", {})
    checkpoints.prepare()
    assert checkpoints.directory.is_dir()
    checkpoints.directory.rmdir()
    checkpoints.directory.symlink_to("/no/such/disk")
    match = "checkpoints: expected a directory or nothing, got .* to /no/such/disk; mount"
    for use in (checkpoints.prepare, checkpoints.steps):
        with pytest.raises(UserError, match=match):
            use()
    checkpoints.directory.unlink()
    checkpoints.directory.touch()
    with pytest.raises(UserError, match="checkpoints: expected a directory or nothing, got a file"):
        checkpoints.prepare()


@pytest.mark.parametrize("name", ["3", "000000003", "٣"])
def test_a_checkpoint_of_another_name_is_refused(name: str, tmp_path: Path):
    add(tmp_path, 3).rename(tmp_path / name)
    add(tmp_path, 2)
    with pytest.raises(UserError, match=f"/{name}: .* rename it to 00000003, or move it out"):
        Checkpoints(tmp_path, {}).steps()
    assert retention(tmp_path).best() is None, "a run that has begun goes on"


def test_what_cannot_be_deleted_is_named_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    for step in (1, 2, 3):
        add(tmp_path, step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        for _ in range(2):
            retention(tmp_path).delete_superseded()
    left = [f".0000000{step}.deleted.dlrm_jax" for step in (1, 2)]
    assert names(tmp_path) == [*left, "00000003"]
    assert sorted(record.getMessage().partition(" can't")[0] for record in caplog.records) == [
        str(tmp_path / name) for name in left
    ], "each once"
    retention(tmp_path).delete_superseded()
    assert names(tmp_path) == ["00000003"]


@pytest.mark.parametrize("name", ["my_notes.txt", "dense/my_notes.txt", "mine"])
@pytest.mark.parametrize("has_files", [True, False])
def test_a_superseded_checkpoint_with_files_of_a_user_is_kept(
    name: str, has_files: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for step in (1, 2, 3):
        checkpoint = add(tmp_path, step)
        if not has_files:  # as earlier versions wrote it
            metadata = read_metadata(checkpoint)
            del metadata["files"]
            (checkpoint / "metadata.json").write_text(json.dumps(metadata))
    mine = tmp_path / "00000001" / name
    if name == "mine":
        mine.symlink_to(tmp_path)
    else:
        mine.write_text("mine")
    for _ in range(2):
        retention(tmp_path).delete_superseded()
    if not has_files and name.startswith("dense/"):
        assert names(tmp_path) == ["00000003"], "Orbax's files aren't known"
        return
    assert names(tmp_path) == ["00000001", "00000003"]
    (record,) = caplog.records
    assert f"00000001 isn't deleted: {name} isn't part of it" in record.getMessage()


@pytest.mark.parametrize(
    "name",
    [
        *("run[1]", "a**", "a\udcff"),
        *(pytest.param(x, marks=pytest.mark.thorough) for x in ("a[", "a?", "a*")),
    ],
)
def test_paths_that_orbax_would_not_find_again(name: str, tmp_path: Path):
    learner = learner_on("1x1")
    with pytest.raises(UserError, match=r"expected a path (without \*, \? and \[|in UTF-8); give"):
        save(tmp_path / name, learner, learner.init(0))
    with pytest.raises(UserError, match="expected a path"), owned(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_has_been_moved_gets_no_checkpoint(tmp_path: Path):
    learner = learner_on("1x1")
    with pytest.raises(
        UserError, match=r"cannot write the checkpoint .*/moved/checkpoints/0000000"
    ):
        save(tmp_path / "moved", learner, learner.init(0))
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_checkpoint_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = add(tmp_path, 1) / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    add(tmp_path, 2, 0.5)
    for _ in range(2):
        assert retention(tmp_path).improves({"auc": 0.6})
        retention(tmp_path).delete_superseded()
    (record,) = caplog.records
    assert "has format 9" in record.getMessage()


def test_a_changed_checkpoint_takes_no_whole_ones_place(tmp_path: Path):
    for step, auc in enumerate((0.5, 0.6, 0.9, 0.7)):
        add(tmp_path, step, auc)
    (tmp_path / "00000002" / "dense" / "x").write_text("y")
    checkpoints = Retention(tmp_path, keep=2, best_metric="auc")
    assert checkpoints.best() == 3
    assert checkpoints.improves({"auc": 0.8})
    checkpoints.delete_superseded()
    assert names(tmp_path) == ["00000001", "00000002.damaged", "00000003"]


def test_the_journal_of_a_damaged_checkpoint_is_set_aside_with_it(tmp_path: Path):
    for step in (1, 2):
        add(tmp_path, step)
        (tmp_path / f"{step:08d}.journal").mkdir()
    (tmp_path / "00000002.journal" / "000001").write_text("entry")
    (tmp_path / "00000002" / "dense" / "x").write_text("y")
    retention(tmp_path).delete_superseded()
    aside = ["00000002.damaged", "00000002.journal.damaged"]
    assert names(tmp_path) == ["00000001", "00000001.journal", *aside]
    assert names(tmp_path / "00000002.journal.damaged") == ["000001"]


def test_one_that_cannot_be_read_just_now_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(path: Path) -> bytes:
        if path.name == "x" and path.parents[1].name == "00000002":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    for step, auc in enumerate((0.5, 0.6, 0.9, 0.7)):
        add(tmp_path, step, auc)
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", fail)
    checkpoints = Retention(tmp_path, keep=2, best_metric="auc")
    assert checkpoints.best() == 2
    assert not checkpoints.improves({"auc": 0.8})
    checkpoints.delete_superseded()
    assert names(tmp_path) == ["00000002", "00000003"]


def test_numbers_of_arrays_are_metrics_and_other_things_are_named(tmp_path: Path):
    for step, auc in enumerate((np.float32(0.5), np.float64(0.5), jnp.array(0.5), np.array(0.5))):
        assert read_metadata(add(tmp_path, step, auc))["validation"] == {"auc": 0.5}
    for wrong in (np.ones(2), object(), {1}, np.complex64(1j)):
        with pytest.raises(UserError, match=r"cannot save the checkpoint: .* isn't JSON"):
            add(tmp_path / type(wrong).__name__, 9, wrong)
