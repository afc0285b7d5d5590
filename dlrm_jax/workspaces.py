"""Directories for what isn't complete, or isn't needed any more, and proofs that they are ours."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlrm_jax.errors import UserError

MARKER = "made_by_dlrm_jax"
"""Name of the file that proves that a directory is a `workspace`."""

_ENDING = ".dlrm_jax"

# Errors by which a file system says that directories can't be flushed on their own.
_NO_DIRECTORY_FSYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)


@contextmanager
def workspace(path: Path, kind: str = "") -> Iterator[Path]:
    """Context of a directory for what isn't complete, or isn't needed any more.

    It is ``.NAMEKIND.dlrm_jax`` beside ``path``. The file `MARKER` is the first that it gets and
    the last that it loses: a killed process's directory is recognized by it and deleted, a user's
    isn't. It is locked while the context lasts, so that `sweep` leaves a running process's alone.
    Two processes mustn't have one ``path`` and ``kind`` at a time: the later would delete it.

    Yields:
        The directory, empty apart from the marker.

    Raises:
        UserError: the directory exists and has no marker.
    """
    directory = path.with_name(f".{path.name}{kind}{_ENDING}")
    if os.path.lexists(directory) and not _is_workspace(directory):
        raise UserError(
            f"{directory} is in the way: it has no {MARKER}, so this program didn't make it; move "
            f"or delete it"
        )
    descriptor = None
    try:
        _clear(directory)
        directory.mkdir()
        (directory / MARKER).touch()
        flush(directory / MARKER)
        descriptor = os.open(directory / MARKER, os.O_RDWR)
        _lock(descriptor)
        yield directory
    finally:
        _clear(directory)
        if descriptor is not None:
            os.close(descriptor)


def sweep(directory: Path, name: str = "") -> list[Path]:
    """Deletes the workspaces that killed processes have left in a directory.

    Args:
        directory: the directory.
        name: name of the path whose workspaces are meant; all by default.

    Returns:
        Those that can't be deleted now.
    """
    left = []
    for path in sorted(directory.glob(f".{glob.escape(name)}*{_ENDING}")):
        with suppress(PermissionError):  # it is another user's, so not ours
            if _is_workspace(path) and not _is_in_use(path):
                _clear(path)
                left += [path] if path.exists() else []
    return left


def delete(path: Path) -> None:
    """Deletes a file, a link or a directory, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flushes a file or the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_DIRECTORY_FSYNC):
            raise
    finally:
        os.close(descriptor)


def _is_workspace(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    return (path / MARKER).exists() or not any(path.iterdir())


def _is_in_use(directory: Path) -> bool:
    try:
        descriptor = os.open(directory / MARKER, os.O_RDWR)
    except FileNotFoundError:  # killed before it had one
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Locks a file if nobody has; the lock ends with the process. Some file systems have none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _clear(directory: Path) -> None:
    """Deletes a workspace, if there is one."""
    # Files may still be mapped, which NFS doesn't let go of; the next call deletes them.
    with suppress(OSError):
        for entry in directory.iterdir():
            if entry.name != MARKER:
                delete(entry)
        (directory / MARKER).unlink(missing_ok=True)
        directory.rmdir()
