"""Versions that can't be loaded, and tables that change while they are served, are told of."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.serving.repository import Repository
from dlrm_jax.serving.versions import Version, versions_in


def no_model(_: object) -> Any:
    return SimpleNamespace(close=lambda: None, follow=lambda: None)


def test_tables_that_are_written_into_while_they_are_served(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    copy = shutil.copytree(artifact, tmp_path / "copy")
    repository = Repository(copy, no_model)
    caplog.set_level(logging.ERROR)
    path = copy / "tables" / "C2.rows"
    content = path.read_bytes()
    (tmp_path / "new.rows").write_bytes(content)
    (tmp_path / "new.rows").rename(copy / "tables" / "C1.rows")  # the map keeps the old file
    repository.refresh()
    assert caplog.messages == []
    path.write_bytes(bytes(len(content)))
    assert repository.refresh().loaded == []
    repository.refresh()
    (message,) = caplog.messages
    assert f"version 6: {path} was changed while it is served" in message


class Models:
    """A directory of versions, some of which can't be loaded."""

    def __init__(self, artifact: Path, directory: Path, bad: set[str], keep: int = 2):
        self.artifact, self.directory, self.bad = artifact, directory, bad
        self.ended: list[str] = []
        self.gone: list[str] = []
        self.add("1")
        self.repository = Repository(directory, self.load, keep, self.gone.append)

    def add(self, *names: str) -> None:
        for name in names:
            shutil.copytree(self.artifact, self.directory / name)

    def load(self, version: Version) -> Any:
        if version.name in self.bad:
            raise UserError(f"{version.name} is bad")
        return SimpleNamespace(close=lambda: self.ended.append(version.name), follow=lambda: None)

    def look(self) -> tuple[list[str], list[str], list[str]]:
        """What was loaded, what failed, and what is served."""
        found = self.repository.try_refresh()
        assert not found.problem
        return found.loaded, found.failed, self.repository.versions


@pytest.fixture(autouse=True)
def same_columns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dlrm_jax.serving.repository._compare_columns", lambda *_: None)


def test_a_version_that_cannot_be_loaded_blocks_no_other(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    models = Models(artifact, tmp_path, {"2", "4", "6"})
    models.add("2")
    assert models.look() == ([], ["2"], ["1"])
    models.add("3")
    assert models.look() == (["3"], [], ["1", "3"])
    models.add("4")
    for _ in range(2):
        assert models.look() == ([], ["4"], ["1", "3"])
    models.add("5", "6")
    assert models.look() == (["5"], ["6"], ["3", "5"])
    assert models.ended == ["1"]
    assert [x for x in models.gone if x not in models.bad] == ["1"]
    models.bad.remove("6")
    assert models.look() == (["6"], [], ["5", "6"])
    assert caplog.messages == [f"version {x} can't be loaded: {x} is bad" for x in "246"]


def test_what_is_served_stays_if_what_replaces_it_cannot_be_loaded(artifact: Path, tmp_path: Path):
    models = Models(artifact, tmp_path, {"0", "4"}, keep=1)
    models.add("0")
    with (tmp_path / "1" / "manifest.json").open("a", encoding="utf-8") as file:
        file.write(" ")  # other content
    models.bad.add("1")
    assert models.look() == ([], ["1"], ["1"])
    shutil.rmtree(tmp_path / "1")
    assert models.look() == ([], ["0"], ["1"])  # nothing else can be loaded
    models.add("4")
    assert models.look() == ([], ["4", "0"], ["1"])
    assert models.ended == []
    models.bad.clear()
    assert models.look() == (["4"], [], ["4"])
    assert models.ended == ["1"]
    shutil.rmtree(tmp_path / "4")  # taken back
    assert models.look() == (["0"], [], ["0"])


def test_a_version_that_is_taken_back_goes(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Also while a newer one can't be loaded: a fresh start would serve the same."""
    models = Models(artifact, tmp_path, {"3"}, keep=1)
    models.add("2")
    assert models.look() == (["2"], [], ["2"])
    models.add("3")
    assert models.look() == ([], ["3"], ["2"])
    shutil.rmtree(tmp_path / "2")
    assert models.look() == (["1"], ["3"], ["1"])
    assert models.ended == ["1", "2"]
    shutil.rmtree(tmp_path / "1")
    for _ in range(2):
        assert models.look() == ([], ["3"], ["1"])
    assert caplog.messages == [
        "version 3 can't be loaded: 3 is bad",
        "version 1 is served although it isn't there any more: no version that is there can be "
        "loaded",
    ]


def test_the_log_says_which_versions_come_and_go(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    models = Models(artifact, tmp_path, set())
    models.add("2")
    for change in (lambda: None, lambda: models.add("3"), lambda: shutil.rmtree(tmp_path / "3")):
        change()
        for _ in range(2):
            models.look()
    shutil.rmtree(tmp_path / "2")
    assert models.look() == ([], [], ["1"])
    assert caplog.messages == [
        "serving version 2",
        "serving version 3; version 1 isn't served any more",
        "serving version 1; version 3 isn't served any more; version 2 is the newest",
        "version 2 isn't served any more; version 1 is the newest",
    ]


def test_of_several_versions_those_that_are_there_are_served(artifact: Path, tmp_path: Path):
    models = Models(artifact, tmp_path, {"5"})
    models.add("2", "3", "4", "5")
    assert models.look() == (["3", "4"], ["5"], ["3", "4"])
    shutil.rmtree(tmp_path / "3")
    assert models.look() == (["2"], ["5"], ["2", "4"])
    shutil.rmtree(tmp_path / "4")
    assert models.look() == (["1"], ["5"], ["1", "2"])
    shutil.rmtree(tmp_path / "2")
    assert models.look() == ([], ["5"], ["1"])


def test_manifests_that_cannot_be_read_block_no_other(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.parent.name == "2":
            raise PermissionError(13, "Permission denied", str(path))
        if path.parent.name == "4":  # somebody deletes it just now
            shutil.rmtree(path.parent)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    shutil.copytree(artifact, tmp_path / "2")
    models = Models(artifact, tmp_path, set())
    assert models.repository.versions == ["1"]
    models.add("3", "4")
    assert models.look() == (["3"], [], ["1", "3"])
    (message,) = caplog.messages
    assert message.startswith("version 2 can't be loaded: ")
    assert "Permission denied" in message


@pytest.mark.parametrize("kind", ["nothing", "pipe", "directory", "dead link"])
def test_directories_without_a_manifest_are_told_of(
    artifact: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
):
    """As a copy that was cut off leaves one; a deployment would seem to have gone well."""
    models = Models(artifact, tmp_path, set())
    path = tmp_path / "2" / "manifest.json"
    path.parent.mkdir()
    (tmp_path / "3").touch()  # no directory
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "dead link":
        path.symlink_to("nowhere")
    for _ in range(2):
        assert models.look() == ([], ["2"], ["1"])
    (message,) = caplog.messages
    assert message.startswith(f"version 2 can't be loaded: {path.parent} is no artifact: cannot re")
    shutil.rmtree(path.parent)
    models.add("2")
    assert models.look() == (["2"], [], ["1", "2"])


def test_two_names_of_one_number_are_refused(artifact: Path, tmp_path: Path):
    models = Models(artifact, tmp_path, set())
    models.add("01", "2")
    with pytest.raises(UserError, match=r"one version of each number, .*/01 and .*/1 have the sam"):
        models.repository.refresh()
    (tmp_path / "01").rename(tmp_path / "03")
    assert models.look() == (["2", "03"], [], ["2", "03"])
    assert [x.name for x in versions_in(tmp_path)] == ["1", "2", "03"]


def test_a_look_without_versions_says_what_is_there(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    directory = tmp_path / "models"
    models = Models(artifact, directory, set())

    def problem() -> str:
        found = models.repository.try_refresh()
        assert (found.loaded, found.failed, models.repository.versions) == ([], [], ["1"])
        assert str(tmp_path) in caplog.messages[-1]
        return found.problem

    models.add("01")
    assert problem() == "two versions have the number 1"
    for name in ("01", "1"):
        (directory / name).rename(tmp_path / name)
    assert problem() == "the directory of the versions holds none"
    (directory / "publishing.lock").touch()
    assert problem() == "nothing is published yet"
    assert "start again when it prints a line such as 'published step" in caplog.messages[-1]
    shutil.rmtree(directory)
    assert problem() == "the directory of the versions isn't there"
    shutil.copytree(tmp_path / "1", directory)  # a lone artifact
    (directory / "manifest.json").write_text("{", encoding="utf-8")
    assert problem() == "the directory of the versions can't be read"
    shutil.rmtree(directory)
    (tmp_path / "1").rename(directory)
    assert models.repository.try_refresh().problem == ""


def test_versions_at_the_start(artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shutil.copytree(artifact, tmp_path / "2")
    assert Models(artifact, tmp_path, {"2"}).repository.versions == ["1"]
    assert caplog.messages == ["version 2 can't be loaded: 2 is bad"]
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(UserError, match="2 is bad"):
        Models(artifact, tmp_path, {"1", "2"})
    assert caplog.messages[1:] == ["version 1 can't be loaded: 1 is bad"]
