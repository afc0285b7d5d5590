"""Only what is provably ours is deleted, and what a killed process left is."""

import contextlib
import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from written import StoppedError, read, write

from dlrm_jax import files, workspaces
from dlrm_jax.errors import UserError


def leave_workspace(path, kind):
    """A workspace as a killed process leaves it, after its marker or after some content."""
    path.mkdir()
    if kind:
        (path / workspaces.MARKER).touch()
        write(path / "name", kind, "half")


@pytest.mark.parametrize("kind", ["", "file", "directory"])
def test_what_a_killed_process_left_is_written_anew(tmp_path, kind):
    for use in ("", ".replaced", ".deleted"):
        leave_workspace(tmp_path / f".name{use}.dlrm_jax", kind)
    for content in ("whole", "again"):
        with files.replacing(tmp_path / "name") as temporary:
            write(temporary, "directory", content)
        assert read(tmp_path / "name") == content
    files.delete_directory(tmp_path / "name")
    assert list(tmp_path.iterdir()) == []
    leave_workspace(tmp_path / ".other.dlrm_jax", kind)
    workspaces.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def own_files(directory, names):
    """A user's files, directories and links of these names; returns what they hold."""
    (directory / "elsewhere").mkdir()
    for number, name in enumerate(names):
        write(directory / f"{name}0", ("file", "directory")[number % 2], name)
        (directory / f"{name}0").rename(directory / name)
        (directory / f"{name}.link").symlink_to(directory / "elsewhere")

    def content():
        entries = (path for path in sorted(directory.rglob("*")) if path.parent.name != "inner")
        return {str(path): path.is_symlink() or path.is_dir() or read(path) for path in entries}

    return content


def test_a_users_files_stay(tmp_path):
    names = [f"name{end}" for end in (".partial", ".replaced", ".deleting", ".scratch", ".tmp")]
    content = own_files(tmp_path, [*names, *(f".{name}" for name in names)])
    before = content()
    for _ in range(2):
        with files.replacing(tmp_path / "name") as temporary:
            write(temporary, "directory", "text")
    with files.scratch_directory(tmp_path / "name"):
        files.delete_directory(tmp_path / "name")
    with files.creating(tmp_path / "name") as temporary:
        temporary.touch()
    (tmp_path / "name").unlink()
    workspaces.sweep(tmp_path)
    assert content() == before


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_users_file_in_the_way_is_named(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / workspaces.MARKER).touch()
    in_the_way = tmp_path / ".name.dlrm_jax"
    if kind == "link":
        in_the_way.symlink_to(tmp_path / "elsewhere")
    else:
        write(in_the_way, kind, "mine")
    with pytest.raises(UserError, match=r"\.name\.dlrm_jax is in the way: it has no made_by"):
        files.write_text(tmp_path / "name", "text")
    workspaces.sweep(tmp_path)
    assert in_the_way.is_symlink() or read(in_the_way) == "mine"
    assert (tmp_path / "elsewhere" / workspaces.MARKER).exists()


@pytest.mark.parametrize("readable", [True, False])
def test_remains_of_another_user_are_skipped(tmp_path, monkeypatch, readable):
    remains = tmp_path / ".name.0123.dlrm_jax"
    leave_workspace(remains, "file")

    def refuse(path, *args, **kwargs):
        if remains in (Path(path), Path(path).parent):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    name = "open" if readable else "exists"
    real = getattr(Path, name)
    monkeypatch.setattr(Path, name, refuse)
    with files.creating(tmp_path / "name") as temporary:
        temporary.write_text("mine")
    monkeypatch.undo()
    assert (tmp_path / "name").read_text() == "mine"
    assert (remains / workspaces.MARKER).exists()


def test_writers_of_one_path_have_directories_of_their_own(tmp_path):
    with files.scratch_directory(tmp_path / "name") as first:
        with files.scratch_directory(tmp_path / "name") as second:
            assert first != second
        assert first.is_dir()


KILLED = """
import os, signal, sys
from pathlib import Path
from dlrm_jax import files
with files.creating(Path(sys.argv[1])) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_and_what_a_running_one_has_stays(tmp_path):
    process = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "name"], check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with files.scratch_directory(tmp_path / "name") as directory:
        with files.creating(tmp_path / "name") as path:
            path.write_text("whole")
        assert directory.is_dir()
    assert list(tmp_path.iterdir()) == [tmp_path / "name"]


@pytest.mark.parametrize("swept", ["mkdir", "flock"])
def test_what_is_swept_while_it_is_made_is_made_again(tmp_path, monkeypatch, swept):
    def mkdir(path, mkdir=workspaces.Path.mkdir):
        mkdir(path)
        sweep("mkdir")

    def flock(marker, how, flock=fcntl.flock):
        sweep("flock")
        flock(marker, how)

    def sweep(moment):
        if swept == moment and not sweeps:
            sweeps.append(moment)
            workspaces.sweep(tmp_path)
            assert list(tmp_path.iterdir()) == []

    sweeps = []
    monkeypatch.setattr(workspaces.Path, "mkdir", mkdir)
    monkeypatch.setattr(fcntl, "flock", flock)
    with workspaces.workspace(tmp_path / "name") as directory:
        assert sweeps
        workspaces.sweep(tmp_path)
        write(directory / "name", "file", "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seen", ["without a marker", "with an earlier marker"])
def test_what_is_made_while_another_process_sweeps_stays(tmp_path, monkeypatch, seen):
    def earlier(path, *args, real=workspaces.Path.open):
        if seen == "without a marker":
            raise FileNotFoundError
        return real(tmp_path / "earlier", *args)

    (tmp_path / "earlier").touch()
    with workspaces.workspace(tmp_path / "name") as directory:
        write(directory / "name", "file", "text")
        with monkeypatch.context() as patch:
            patch.setattr(workspaces.Path, "open", earlier)
            workspaces.sweep(tmp_path)
        assert read(directory / "name") == "text"
        assert (directory / workspaces.MARKER).exists()


def test_what_another_process_sweeps_first_is_no_obstacle(tmp_path, monkeypatch):
    def is_dir(path, is_dir=workspaces.Path.is_dir):
        found = is_dir(path)
        if path.name == ".name.dlrm_jax" and found and not any(path.iterdir()):
            path.rmdir()
        return found

    monkeypatch.setattr(workspaces.Path, "is_dir", is_dir)
    leave_workspace(tmp_path / ".name.dlrm_jax", "")
    workspaces.sweep(tmp_path)
    leave_workspace(tmp_path / ".name.dlrm_jax", "")
    with workspaces.workspace(tmp_path / "name"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_open_files_have_names(tmp_path, monkeypatch):
    """NFS gives an open file another name when it is deleted."""

    def rmdir(path, rmdir=workspaces.Path.rmdir):
        for descriptor in workspaces.Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if descriptor.readlink().is_relative_to(path):
                    raise OSError(errno.ENOTEMPTY, "Directory not empty")
        rmdir(path)

    monkeypatch.setattr(workspaces.Path, "rmdir", rmdir)
    leave_workspace(tmp_path / ".name.killed.dlrm_jax", "file")
    with files.creating(tmp_path / "name") as path:
        path.touch()
    assert list(tmp_path.iterdir()) == [tmp_path / "name"]


def test_what_is_written_while_it_is_deleted_stays_ours(tmp_path, monkeypatch):
    """As threads of a write that failed do: what they leave has a marker, so the next run goes on.

    A directory without one would be in the way until someone deletes it by hand.
    """

    def rmdir(path, rmdir=workspaces.Path.rmdir):
        (path / "late").mkdir(exist_ok=True)
        rmdir(path)

    with monkeypatch.context() as patch:
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(workspaces.workspace(tmp_path / "name"))
            patch.setattr(workspaces.Path, "rmdir", rmdir)
        assert {x.name for x in directory.iterdir()} == {workspaces.MARKER, "late"}
    with workspaces.workspace(tmp_path / "name") as directory:
        assert [x.name for x in directory.iterdir()] == [workspaces.MARKER]
    assert not any(tmp_path.iterdir())


def test_a_directory_is_renamed_before_it_is_deleted(tmp_path, monkeypatch):
    write(tmp_path / "name", "directory", "text")
    with monkeypatch.context() as patch:
        patch.setattr(workspaces.shutil, "rmtree", lambda path: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            files.delete_directory(tmp_path / "name")
    assert not (tmp_path / "name").exists()
    assert len(list(tmp_path.iterdir())) == 1
    write(tmp_path / "name", "directory", "text")
    files.delete_directory(tmp_path / "name")
    assert not list(tmp_path.iterdir())


def test_a_scratch_directory_is_empty_and_never_stays(tmp_path):
    def interrupted():
        with files.scratch_directory(tmp_path / "p.csv") as directory:
            found.append(directory)
            assert list(directory.iterdir()) == []
            (directory / "a").touch()
            raise KeyboardInterrupt

    found = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    found[0].mkdir(parents=True)
    (found[0].parent / workspaces.MARKER).touch()
    (found[0] / "of a killed process").touch()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert found[0] != found[1]
