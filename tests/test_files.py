"""What is written appears completely or not at all, whatever ends the program."""

import errno
import os
import stat
import subprocess
import sys
import time

import pytest
from written import KINDS, StoppedError, read, write

from dlrm_jax import files
from dlrm_jax.errors import UserError


@KINDS
def test_replacing(tmp_path, kind):
    path = tmp_path / "new" / "name"
    for content in ("first", "second"):
        with files.replacing(path) as temporary:
            write(temporary, kind, content)
            assert not path.exists() or read(path) == "first"
        assert read(path) == content
    assert list(path.parent.iterdir()) == [path]


@KINDS
@pytest.mark.parametrize("context", [files.replacing, files.creating])
def test_an_error_leaves_what_was_there(tmp_path, kind, context):
    path = tmp_path / "name"
    if context is files.replacing:
        write(path, kind, "before")

    def stop():
        with context(path) as temporary:
            write(temporary, kind, "half")
            raise StoppedError

    with pytest.raises(StoppedError):
        stop()
    if context is files.replacing:
        assert read(path) == "before"
    assert list(tmp_path.iterdir()) == ([path] if context is files.replacing else [])


@KINDS
def test_creating_replaces_nothing(tmp_path, kind):
    path = tmp_path / "name"
    with files.creating(path) as temporary:
        write(temporary, kind, "first")
    with pytest.raises(UserError, match="name exists; remove it"), files.creating(path):
        pytest.fail("the body must not run")

    def create_meanwhile():
        with files.creating(tmp_path / "later") as temporary:
            write(temporary, kind, "slow")
            write(tmp_path / "later", kind, "fast")

    with pytest.raises(UserError, match="later exists"):
        create_meanwhile()
    assert read(path) == "first"
    assert read(tmp_path / "later") == "fast"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "later", path]


@KINDS
@pytest.mark.parametrize("links", [True, False])
def test_creating_replaces_nothing_that_comes_up_while_it_flushes(
    tmp_path, monkeypatch, kind, links
):
    def flush_all(written, flush=files.flush_all):
        flush(written)
        write(tmp_path / "name", kind, "fast")

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(files, "flush_all", flush_all)
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="name exists"), files.creating(tmp_path / "name") as path:
        write(path, kind, "slow")
    assert read(tmp_path / "name") == "fast"


def test_a_file_replaces_no_directory_and_a_failure_replaces_nothing(tmp_path, monkeypatch):
    write(tmp_path / "name", "directory", "mine")
    with pytest.raises(IsADirectoryError):
        files.write_text(tmp_path / "name", "text")
    assert read(tmp_path / "name") == "mine"

    def rename(path, target, rename=files.Path.rename):
        if ".replaced" not in str(target) and ".replaced" not in str(path):
            raise StoppedError
        return rename(path, target)

    monkeypatch.setattr(files.Path, "rename", rename)
    with pytest.raises(StoppedError), files.replacing(tmp_path / "name") as temporary:
        write(temporary, "directory", "other")
    assert read(tmp_path / "name") == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "name"]


@pytest.mark.parametrize("fault", ["broken disk", "the name is taken"])
def test_what_cannot_be_put_back_is_kept_and_named(tmp_path, monkeypatch, fault):
    def rename(path, target, rename=files.Path.rename):
        if path.name == "name" and path.parent.name == ".name.dlrm_jax":
            if fault == "the name is taken":
                write(tmp_path / "name", "directory", "another process's")
            raise OSError(errno.EIO, "Input/output error")
        if fault == "broken disk" and target == tmp_path / "name":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    def replace():
        with files.replacing(tmp_path / "name") as temporary:
            write(temporary, "directory", "after")

    write(tmp_path / "name", "directory", "before")
    old = tmp_path / ".name.replaced.dlrm_jax" / "name"
    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "rename", rename)
        with pytest.raises(OSError, match=f"Input/output error.*its old content is {old} now"):
            replace()
    assert read(old) == "before"
    if fault == "broken disk":
        write(tmp_path / "name", "directory", "new")
    with pytest.raises(UserError, match=r"\.name\.replaced\.dlrm_jax is in the way"):
        replace()
    files.sweep(tmp_path)
    assert read(old) == "before"


def test_a_name_that_is_taken_and_free_again_is_used(tmp_path, monkeypatch):
    def link(source, target, link=os.link):
        if not taken:
            taken.append(target)
            raise FileExistsError(errno.EEXIST, "File exists")
        link(source, target)

    taken = []
    monkeypatch.setattr(os, "link", link)
    with files.creating(tmp_path / "name") as temporary:
        write(temporary, "file", "text")
    assert taken
    assert read(tmp_path / "name") == "text"


def test_creating_makes_directories_or_is_one_error(tmp_path):
    with files.creating(tmp_path / "new" / "newer" / "name") as temporary:
        temporary.write_text("text")
    assert (tmp_path / "new" / "newer" / "name").read_text() == "text"
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write .*nothing is left of it"),
        files.creating(tmp_path / "file" / "name") as temporary,
    ):
        temporary.write_text("")


@pytest.fixture
def flushed(monkeypatch):
    """The paths that were flushed and the renames, in order."""
    calls = []
    flush, replace = files.flush, files.Path.replace
    monkeypatch.setattr(files, "flush", lambda path: (calls.append(path.name), flush(path)))
    monkeypatch.setattr(
        files.Path, "replace", lambda path, to: (calls.append("rename"), replace(path, to))[1]
    )
    return calls


def test_all_is_flushed_before_the_rename_and_the_parent_after(tmp_path, flushed):
    with files.replacing(tmp_path / "name") as temporary:
        write(temporary, "directory", "text")
    assert flushed == ["file", "inner", "name", "rename", tmp_path.name]


def test_a_full_disk_that_shows_late_replaces_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write_text(tmp_path / "name", "before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(tmp_path / "name", "after")
    assert read(tmp_path / "name") == "before"
    assert list(tmp_path.iterdir()) == [tmp_path / "name"]


def test_a_file_system_that_cannot_flush_directories(tmp_path, monkeypatch):
    flush = os.fsync

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    files.write_text(tmp_path / "name", "text")
    assert read(tmp_path / "name") == "text"


WRITER = """
import itertools, sys
from pathlib import Path
from dlrm_jax.files import replacing
path = Path(sys.argv[1])
for number in itertools.count():
    with replacing(path) as temporary:
        temporary.write_text(f"{number} " * 10_000)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "name"
    for number in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, path]) as process:
            wait_for(path.exists)
            time.sleep(0.05 * number)
            process.kill()
        words = path.read_text().split()
        assert len(words) == 10_000
        assert len(set(words)) == 1


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_json_of_too_many_levels_is_no_json(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="too many levels"):
        files.read_json(tmp_path / "deep.json")
    files.write_json(tmp_path / "a.json", {"ä": [1]})
    assert files.read_json(tmp_path / "a.json") == {"ä": [1]}


@pytest.mark.parametrize("relative", ["", "relative", "./cache", "~/cache"])
def test_a_cache_directory_that_is_relative_is_ignored(tmp_path, monkeypatch, relative):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    assert files.cache_directory() == tmp_path / ".cache" / "dlrm_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert files.cache_directory() == tmp_path / "other" / "dlrm_jax"
