"""Checkpoints that can't be read just now aren't damaged; only proof sets one aside."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.training import orbax_io
from dlrm_jax.training.metadata import FORMAT, read_metadata, write_metadata
from dlrm_jax.training.retention import Retention

WHOLE = {"step": 3, "identity": {}, "validation": None, "params": {}, "arrays": {}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "dense"
    orbax_io.save(path, {"a": jax.numpy.arange(3.0)})
    return path


def load_failing(path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> Exception:
    """What `load` makes of an error of Orbax."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(orbax_io.ocp, "load", fail)
    with pytest.raises((UserError, type(error))) as caught:
        orbax_io.load(path, {"a": np.zeros(3, np.float32)})
    return caught.value


@pytest.mark.parametrize("status", ["UNKNOWN", "NOT_FOUND"])
@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV]
)
def test_a_file_system_that_refuses_is_no_damage(
    saved: Path, status: str, number: int, monkeypatch: pytest.MonkeyPatch
):
    text = f'{status}: Failed to open: "x": {os.strerror(number)} [tensorstore_spec[1]={{}}'
    error = load_failing(saved, ValueError(text), monkeypatch)
    assert type(error) is UserError
    assert str(error).endswith(f"{os.strerror(number)}; try again, or give another one")


@pytest.mark.parametrize(
    "error", [ValueError("RESOURCE_EXHAUSTED: 12 GB"), TimeoutError("deadline"), KeyError("k")]
)
def test_what_proves_nothing_is_no_damage(
    saved: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    found = load_failing(saved, error, monkeypatch)
    assert type(found) is UserError
    assert str(found).startswith(f"cannot read the checkpoint {saved}: ")


@pytest.mark.parametrize("error", [TypeError("a bug"), AttributeError("a bug"), MemoryError()])
def test_a_bug_passes_unchanged(saved: Path, error: Exception, monkeypatch: pytest.MonkeyPatch):
    assert load_failing(saved, error, monkeypatch) is error


@pytest.mark.parametrize("status", ["NOT_FOUND", "DATA_LOSS", "OUT_OF_RANGE"])
def test_a_status_that_proves_damage(saved: Path, status: str, monkeypatch: pytest.MonkeyPatch):
    error = load_failing(saved, ValueError(f"{status}: Error decoding"), monkeypatch)
    assert isinstance(error, DamagedCheckpointError)


def test_a_description_that_cannot_be_asked_for_is_not_missing(
    saved: Path, monkeypatch: pytest.MonkeyPatch
):
    stat = Path.stat

    def stale(path: Path, **options: bool) -> os.stat_result:
        if path.name == "_METADATA":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return stat(path, **options)

    missing = orbax_io.ocp.errors.InvalidLayoutError("No valid PyTree checkpointable found.")
    assert isinstance(load_failing(saved, missing, monkeypatch), DamagedCheckpointError)
    monkeypatch.setattr(Path, "stat", stale)
    assert type(load_failing(saved, missing, monkeypatch)) is UserError


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """A checkpoint of one file."""
    path = tmp_path / "00000003"
    (path / "dense").mkdir(parents=True)
    (path / "dense" / "file").write_text("content")
    write_metadata(path, WHOLE)
    return path


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.ELOOP, errno.EIO])
def test_a_file_whose_size_cannot_be_read_is_not_missing(
    noted: Path, number: int, monkeypatch: pytest.MonkeyPatch
):
    assert read_metadata(noted)["step"] == 3
    refused, stat = noted / "dense" / "file", Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path in (refused, noted.parent / "00000004"):
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match=f"cannot read .*{os.strerror(number)}") as caught:
        read_metadata(noted)
    assert not isinstance(caught.value, DamagedCheckpointError)
    (noted.parent / "00000004").mkdir()
    with pytest.raises(OSError, match=os.strerror(number)):  # it would resume from an earlier one
        Retention(noted.parent, 2, "auc").steps()


def test_a_file_in_place_of_a_directory_is_damage(noted: Path):
    (noted / "dense" / "file").unlink()
    (noted / "dense").rmdir()
    (noted / "dense").write_text("")
    with pytest.raises(DamagedCheckpointError, match="it has no dense/file"):
        read_metadata(noted)


@pytest.mark.parametrize("name", ["a\0b", "x" * 10])
def test_names_of_files_that_are_not_there(noted: Path, name: str):
    metadata = json.loads((noted / "metadata.json").read_text())
    (noted / "metadata.json").write_text(json.dumps(metadata | {"files": {name: 1}}))
    with pytest.raises(DamagedCheckpointError, match="it has no "):
        read_metadata(noted)


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path):
    validation = {"auc": 0.5, "by day": {"1": 0.6}}
    with pytest.raises(UserError, match=r'can\'t hold the validation \{"auc": 0.5, "by day"'):
        write_metadata(tmp_path, WHOLE | {"validation": validation})
    assert not list(tmp_path.iterdir())
    write_metadata(tmp_path, WHOLE | {"validation": {"auc": 0.5, "log_loss": float("nan")}})
    assert json.loads((tmp_path / "metadata.json").read_text())["format"] == FORMAT


@pytest.mark.parametrize("speed", [[1.5], "fast", True])
def test_a_speed_that_is_no_number(tmp_path: Path, speed: object):
    with pytest.raises(UserError, match="can't hold the examples_per_second"):
        write_metadata(tmp_path, WHOLE | {"examples_per_second": speed})
