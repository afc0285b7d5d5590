"""Locks between runs: who holds one keeps others out, and a process that ends holds none."""

import errno
import fcntl
import itertools
import signal
import subprocess
import sys
import threading
import time

import pytest

from dlrm_jax import locks
from dlrm_jax.errors import UserError

HOLDER = """
import sys, time
from pathlib import Path
from dlrm_jax.locks import locked
with locked(Path(sys.argv[1]), "run"):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    lock_file = tmp_path / "new" / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock_file], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        with (
            pytest.raises(UserError, match="workdir a is in use by another run; wait"),
            locks.locked(lock_file, "workdir a"),
        ):
            pytest.fail("the body must not run")
        before = lock_file.stat().st_mtime_ns
        assert locks.held_file(lock_file) is not None
        assert lock_file.stat().st_mtime_ns == before
        process.send_signal(signal.SIGKILL)
    assert locks.held_file(lock_file) is None
    with locks.locked(lock_file, "workdir a"):
        pass


def test_threads_wait_for_a_lock(tmp_path, caplog):
    inside, most = itertools.count(), []

    def work():
        with locks.locked(tmp_path / ".lock", "output a", wait=True):
            before = next(inside)
            time.sleep(0.05)
            most.append(next(inside) - before)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert "output a is in use by another run; waiting" in caplog.text


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileExistsError),
        locks.locked(tmp_path / "file" / ".lock", "run", wait=True),
    ):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("wait", [True, False])
def test_a_file_system_without_locks(tmp_path, monkeypatch, wait):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    def lock():
        with locks.locked(tmp_path / ".lock", "run", wait=wait):
            pytest.fail("the body must not run")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with pytest.raises(OSError, match=r"expected a file system with locks .*\.lock"):
            lock()


def test_a_look_at_a_lock_makes_no_file(tmp_path):
    assert locks.held_file(tmp_path / "none" / ".lock") is None
    assert not list(tmp_path.iterdir())
