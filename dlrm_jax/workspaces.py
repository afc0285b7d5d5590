"""Directories for what isn't complete, or isn't needed any more, and proofs that they are ours."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dlrm_jax.errors import UserError

MARKER = "made_by_dlrm_jax"
"""Name of the file that proves that a directory is a `workspace`."""

_ENDING = ".dlrm_jax"
_NFS = ".nfs"  # the names of files that are open and deleted
_TRIES = 3  # to delete a directory that is written to meanwhile; the next call has others

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
            f"{directory} is in the way: it has no {MARKER}, so this program doesn't delete it; "
            f"move or delete it"
        )
    with ExitStack() as stack:
        stack.callback(_remove_empty, directory)
        try:
            _clear(directory)
            while not _make(directory, stack):
                pass
            yield directory
        finally:
            _clear(directory)


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
            if _is_workspace(path) and _clear_unused(path) and path.exists():
                left.append(path)
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


def is_left(path: Path) -> bool:
    """Whether a path is a workspace: one in use, or one that a killed process has left."""
    return path.name.startswith(".") and path.name.endswith(_ENDING) and _is_workspace(path)


def _is_workspace(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    with suppress(FileNotFoundError):  # another process has just swept it
        return (path / MARKER).exists() or not any(path.iterdir())
    return True


def _make(directory: Path, stack: ExitStack) -> bool:
    """Makes a workspace and locks its marker until the stack ends.

    False if another process has swept it before it was locked, as if of a killed process.
    """
    directory.mkdir()
    try:
        marker = stack.enter_context((directory / MARKER).open("ab"))
    except FileNotFoundError:
        return False
    with suppress(OSError):  # some file systems have no locks
        fcntl.flock(marker, fcntl.LOCK_EX)  # who sweeps it has the lock until it is gone
    os.fsync(marker.fileno())
    return _is_marker(marker.fileno(), directory)


def _clear_unused(directory: Path) -> bool:
    """Deletes a workspace; False if a process uses it, or another one deletes it."""
    unused = False
    # Without locks nobody knows. Without a marker its process was killed, or is just making it.
    with suppress(OSError), (directory / MARKER).open("r+b") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_marker(marker.fileno(), directory):
            _clear(directory)
            unused = True
    _remove_empty(directory)
    return unused


def _is_marker(descriptor: int, directory: Path) -> bool:
    """Whether an open file is the marker of a workspace now, and not of an earlier one."""
    try:
        return os.path.samestat(os.fstat(descriptor), (directory / MARKER).stat())
    except FileNotFoundError:
        return False


def _clear(directory: Path) -> None:
    """Deletes a workspace, if there is one."""
    # Files may still be mapped, which NFS doesn't let go of; the next call deletes them.
    with suppress(OSError):
        if not _is_workspace(directory):  # what must stay has lost its marker
            return
        for _ in range(_TRIES):
            for entry in directory.iterdir():
                if entry.name != MARKER:
                    delete(entry)
            (directory / MARKER).unlink(missing_ok=True)
            with suppress(OSError):
                directory.rmdir()
                return
            # Writes that failed may still have threads, which make files and directories.
            if all(entry.name.startswith(_NFS) for entry in directory.iterdir()):
                return
            (directory / MARKER).touch()


def _remove_empty(directory: Path) -> None:
    """Deletes a workspace that has lost its marker; NFS lets go of that when it is closed."""
    with suppress(OSError):
        directory.rmdir()
