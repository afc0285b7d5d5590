"""Locks between runs, which end with their process; and what is done about those of others."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dlrm_jax.errors import InUseError

_log = logging.getLogger(__name__)


@contextmanager
def locked(lock_file: Path, what: str, wait: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Context that keeps other processes, and other threads, out of the same lock.

    The lock ends with the process, however it ends; the file stays.

    Args:
        lock_file: file of the lock; it and its parents are made.
        what: name of the locked thing in messages, such as "workdir runs/a".
        wait: whether to wait for the other run, with a warning, or to raise.
        patience: seconds in which the other run may give it back before either.

    Raises:
        InUseError: another run holds the lock, and ``wait`` is false.
        OSError: the file can't be made, or its file system has no locks.
    """
    check_lockable(lock_file)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        if not wait:
            raise InUseError(
                f"{what} is in use by another run; wait until it ends, or give another path"
            ) from None
        _log.warning("%s is in use by another run; waiting until it ends", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def advice_on(error: OSError) -> str:
    """What to do about a directory that can't be locked, for the end of a message.

    It is empty for errors that another directory needn't mend.
    """
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ""
    return "; give one that you can write to, such as a copy of it that is yours"


def check_lockable(lock_file: Path) -> None:
    """Makes a lock file and its parents, and checks that it can be locked.

    Args:
        lock_file: file of the lock.

    Raises:
        OSError: the file can't be made, or its file system has no locks.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock_file.touch()  # where this fails, filelock would wait for ever
    with lock_file.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Here filelock turns to locks that are files, and would wait for this file to go.
            # Other errors it handles itself; one is that another process has the lock.
            if error.errno == errno.ENOSYS:
                raise OSError(
                    error.errno,
                    "expected a file system with locks (flock), found one without; use a "
                    "directory on another, such as a local disk",
                    str(lock_file),
                ) from error


def held_file(lock_file: Path) -> int | None:
    """The number of a lock's file if another run holds it; None if none does, or there is no file.

    Nothing is written, not even the file of the lock.

    Args:
        lock_file: file of the lock, which needn't be there.

    Raises:
        OSError: the file can't be read, or its file system has no locks.
    """
    try:
        file = lock_file.open("rb")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.fstat(file.fileno()).st_ino
    return None


def file_number(path: Path) -> int | None:
    """The number by which a file system knows a file; None if there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
