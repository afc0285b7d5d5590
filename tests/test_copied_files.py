"""Copies of directories, whole or with the first error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dlrm_jax import copied_files
from dlrm_jax.copied_files import copy_directory


def test_a_directory_is_copied_with_all_that_is_in_it(tmp_path: Path):
    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "a" / "x").write_text("1", encoding="utf-8")
    (tmp_path / "a" / "inner" / "y").write_text("2", encoding="utf-8")
    copy_directory(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "x").read_text(encoding="utf-8") == "1"
    assert (tmp_path / "b" / "inner" / "y").read_text(encoding="utf-8") == "2"
    with pytest.raises(FileExistsError):
        copy_directory(tmp_path / "a", tmp_path / "b")


def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").mkdir()
    for name in "xyz":
        (tmp_path / "a" / name).touch()

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(copied_files.shutil, "copy2", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/b/[xyz]'$"):
        copy_directory(tmp_path / "a", tmp_path / "b")
