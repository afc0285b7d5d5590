"""Atomic, durable writes of files and directories, locks between runs, and the cache directory.

What is written appears under its name completely or not at all, and survives a crash of the
machine: its files and directories are flushed to disk before the rename, its parent after it.
Nothing is deleted that this program can't prove to be its own; see `workspace`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dlrm_jax.errors import UserError

_log = logging.getLogger(__name__)

MARKER = "made_by_dlrm_jax"
"""Name of the file that proves that a directory is a `workspace`."""

_WORKSPACE = ".dlrm_jax"

# Errors by which a file system says that directories can't be flushed on their own.
_NO_DIRECTORY_FSYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context that writes or replaces a file or directory in one step.

    If its body raises, ``path`` stays as it was. Only one process may write a path at a time.

    Args:
        path: the file or directory; its parents are made.

    Yields:
        The temporary path to write to. It doesn't exist yet.

    Raises:
        UserError: see `workspace`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with workspace(path) as directory:
        yield directory / path.name
        move_into_place(directory / path.name, path)


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """Context that writes a new file or directory in one step and replaces nothing.

    It is for paths that users name, which several processes may write.

    Args:
        path: the file or directory; its parent must exist.

    Yields:
        The temporary path to write to. It doesn't exist yet.

    Raises:
        UserError: the path exists or can't be written. Then nothing is left of it.
    """
    try:
        _check_absent(path)
        with workspace(path, f".{os.getpid()}") as directory:
            yield directory / path.name
            _check_absent(path)  # another process may have been faster
            move_into_place(directory / path.name, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error}; nothing is left of it. Check that its directory exists "
            f"and is writable, and that the disk is large enough"
        ) from error


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Context of an empty directory beside a path. Whatever ends the context deletes it.

    Unlike `tempfile.TemporaryDirectory`, it is also deleted if a signal comes while it is made.
    """
    with workspace(path, f".{os.getpid()}.scratch") as directory:
        empty = directory / "scratch"
        empty.mkdir()
        yield empty


@contextmanager
def workspace(path: Path, kind: str = "") -> Iterator[Path]:
    """Context of a directory for what isn't complete, or isn't needed any more.

    It is ``.NAMEKIND.dlrm_jax`` beside ``path``. The file `MARKER` is the first that it gets and
    the last that it loses: a killed process's is recognized by it and deleted, a user's isn't.

    Yields:
        The directory, empty apart from the marker.

    Raises:
        UserError: the directory exists and has no marker.
    """
    directory = path.with_name(f".{path.name}{kind}{_WORKSPACE}")
    if os.path.lexists(directory) and not _is_workspace(directory):
        raise UserError(
            f"{directory} is in the way: it has no {MARKER}, so this program didn't make it; move "
            f"or delete it"
        )
    try:
        _clear(directory)
        directory.mkdir()
        (directory / MARKER).touch()
        _flush(directory / MARKER)
        yield directory
    finally:
        _clear(directory)


def sweep(directory: Path) -> None:
    """Deletes the workspaces of killed processes in a directory that nobody else writes to."""
    for path in directory.glob(f".*{_WORKSPACE}"):
        if _is_workspace(path):
            _clear(path)


def _is_workspace(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    return (path / MARKER).exists() or not any(path.iterdir())


def _clear(directory: Path) -> None:
    """Deletes a workspace, if there is one."""
    # Files may still be mapped, which NFS doesn't let go of; the next call deletes them.
    with suppress(OSError):
        for entry in directory.iterdir():
            if entry.name != MARKER:
                delete(entry)
        (directory / MARKER).unlink(missing_ok=True)
        directory.rmdir()


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise UserError(f"{path} exists; remove it, or give another name")


def move_into_place(written: Path, path: Path) -> None:
    """Flushes a file or directory to disk and renames it.

    Args:
        written: the file or directory, complete, on the file system of ``path``.
        path: the new name. A file of this name is replaced. A directory of this name is moved to a
            `workspace` and deleted afterwards, so that arrays mapped from it stay valid.
    """
    for entry in reversed([written, *written.rglob("*")]):
        _flush(entry)
    with ExitStack() as stack:
        if path.is_dir():
            path.rename(stack.enter_context(workspace(path, ".replaced")) / path.name)
        written.replace(path)
        _flush(path.parent)


def delete_directory(directory: Path) -> None:
    """Deletes a directory that must not be seen half-deleted, if it exists.

    It is moved to a `workspace` first; so is what an interrupted call has left.
    """
    with workspace(directory, ".deleted") as doomed:
        if directory.exists():
            directory.rename(doomed / directory.name)


def delete(path: Path) -> None:
    """Deletes a file, a link or a directory, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file in one step; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes or replaces a JSON file in one step; see `replacing`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


@contextmanager
def locked(lock_file: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Context that keeps other processes, and other threads, out of the same lock.

    The lock ends with the process, however it ends; the file stays.

    Args:
        lock_file: file of the lock; it and its parents are made.
        what: name of the locked thing in messages, such as "workdir runs/a".
        wait: whether to wait for the other run, with a warning, or to raise.

    Raises:
        UserError: another run holds the lock, and ``wait`` is false.
        OSError: the file can't be made.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock_file.touch()  # where this fails, filelock would wait for ever
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(
                f"{what} is in use by another run; wait until it ends, or give another path"
            ) from None
        _log.warning("%s is in use by another run; waiting until it ends", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cache_directory() -> Path:
    """The directory for files that can be made again: compiled programs, data, libraries."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dlrm_jax"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_DIRECTORY_FSYNC):
            raise
    finally:
        os.close(descriptor)
