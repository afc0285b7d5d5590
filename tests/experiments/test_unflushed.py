"""A power cut undoes what wasn't flushed, and nothing else."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from dlrm_jax.errors import UserError
from experiments.campaigns import harness, shim
from experiments.campaigns.unflushed import Disk

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="preloads a library of Linux")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shim.build(tmp_path_factory.mktemp("shim"))


class Worst(random.Random):
    """The worst that may happen: all that may be undone or cut off is."""

    def random(self) -> float:
        return 0.0

    def randint(self, a: int, b: int) -> int:
        return a


def cut(root: Path, library: Path, program: str) -> list[str]:
    """Runs a program in a directory, without Python's start-up files, then cuts the power."""
    disk = Disk(root, root.parent / "aside", library)
    ended = harness.run(["-I", "-S", "-c", program], disk.variables, cwd=root)
    assert ended.outcome == "done", ended.stderr
    return disk.cut(Worst())


FLUSH = """
import os
def flush(path):
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def test_what_is_flushed_stays(root: Path, library: Path):
    program = (
        FLUSH
        + """
open("a.partial", "w").write("new")
flush("a.partial")
os.rename("a.partial", "a")
os.mkdir("d")
open("d/b", "w").write("inside")
flush("d/b"), flush("d"), flush(".")
"""
    )
    (root / "a").write_text("old")
    assert cut(root, library, program) == []
    assert (root / "a").read_text() == "new"
    assert (root / "d" / "b").read_text() == "inside"


def test_an_unflushed_rename_is_undone_and_the_old_file_is_back(root: Path, library: Path):
    (root / "a").write_text("old")
    program = (
        FLUSH
        + """
open("a.partial", "w").write("new")
flush("a.partial"), flush(".")
os.replace("a.partial", "a")
"""
    )
    assert cut(root, library, program) == ["a is a.partial again"]
    assert (root / "a").read_text() == "old"
    assert (root / "a.partial").read_text() == "new"


def test_contents_and_names_are_lost_one_by_one(root: Path, library: Path):
    (root / "known").write_text("12345")
    (root / "doomed").write_text("still needed")
    (root / "folder").mkdir()
    program = (
        FLUSH
        + """
open("named", "w").write("contents")
flush(".")
open("known", "a").write("67890")
open("unnamed", "w").write("contents")
flush("unnamed")
os.remove("doomed")
os.rmdir("folder")
"""
    )
    gone = cut(root, library, program)
    assert sorted(gone) == [
        "doomed is back", "folder is back", "known keeps 5 of 10 bytes",
        "named keeps 0 of 8 bytes", "unnamed is gone",
    ]  # fmt: skip
    assert sorted(x.name for x in root.iterdir()) == ["doomed", "folder", "known", "named"]
    assert (root / "doomed").read_text() == "still needed"
    assert (root / "known").read_text() == "12345"


def test_changes_keep_their_order(root: Path, library: Path):
    program = (
        FLUSH
        + """
os.mkdir("d")
open("first", "w").close()
flush(".")
open("d/second", "w").close()
os.rename("first", "third")
"""
    )
    assert cut(root, library, program) == ["third is first again", "second is gone"]
    assert sorted(x.name for x in root.iterdir()) == ["d", "first"]


@pytest.mark.parametrize(
    ("fault", "program"),
    [
        ("bytes:10:28", "open('a', 'wb', 0).write(b'x' * 20)"),
        ("write:2:5", "os.write(f := os.open('a', 65), b'x'); os.write(f, b'x')"),
        ("read:1:5", "open('b').read()"),
        ("fsync:1:5", "os.fsync(os.open('b', 0))"),
        ("rename:1:5", "os.rename('b', 'c')"),
        ("change:1:30", "os.mkdir('d')"),
        ("change:1:30", "open('a', 'w')"),
    ],
)
def test_faults(root: Path, library: Path, fault: str, program: str):
    (root / "b").write_text("x")
    settings = shim.preloaded(library, root, SHIM_FAULT=fault)
    ended = harness.run(["-I", "-S", "-c", f"import os; {program}"], settings, cwd=root)
    assert f"[Errno {fault.split(':')[2]}]" in ended.stderr
    elsewhere = shim.preloaded(library, root / "other", SHIM_FAULT=fault)
    assert harness.run(["-I", "-S", "-c", f"import os; {program}"], elsewhere, cwd=root).code == 0


def test_without_a_compiler_there_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="a C compiler"):
        shim.build(tmp_path)
