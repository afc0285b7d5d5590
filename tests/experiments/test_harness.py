"""Programs of campaigns: how they end, and what they have started."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from experiments.campaigns.harness import Ended, run, started

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def outcome(program: str, **limits: float) -> str:
    return run(["-I", "-S", "-c", program], **limits).outcome  # pyright: ignore[reportArgumentType]


def test_outcomes():
    assert outcome("print('x')") == "done"
    assert outcome("1 / 0") == "traceback"
    assert outcome("import os; os.kill(os.getpid(), 11)") == "killed"
    assert outcome("import sys; print('error: x', file=sys.stderr); sys.exit(2)") == "error"
    assert outcome("import sys; sys.exit(2)") == "other", "an exit without a word"
    assert outcome("import sys; sys.exit(1)") == "other"
    assert outcome("import time; time.sleep(60)", seconds=0.2) == "hang"


@pytest.mark.parametrize(
    ("code", "stderr", "expected"),
    [
        (0, "Traceback (most recent call last):\n", "traceback"),
        (-11, "Fatal Python error: Segmentation fault\n", "traceback"),
        (2, "error: a\nerror: b\n", "other"),
        (2, "a warning\nerror: a\n", "error"),
    ],
)
def test_outcome_of_what_was_printed(code: int, stderr: str, expected: str):
    assert Ended(code, "", stderr, 1.0, 0).outcome == expected


def test_memory():
    size = 200 << 20
    program = f"x = bytearray({size}); import time; time.sleep(60)"
    ended = run(["-I", "-S", "-c", program], memory=size // 2, seconds=30)
    assert ended.outcome == "memory"
    assert ended.peak_bytes > size // 2


def test_file_size(tmp_path: Path):
    program = f"open('{tmp_path}/a', 'wb', 0).write(b'x' * 2000)"
    ended = run(["-I", "-S", "-c", program], file_bytes=1000)
    assert ended.outcome == "done", ended.stderr
    assert (tmp_path / "a").stat().st_size == 1000


def test_descendants_end_with_a_program(tmp_path: Path):
    child = f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    program = f"""
import subprocess, sys
subprocess.run([sys.executable, "-I", "-S", "-c", {child!r}], start_new_session=True)
"""
    with started(["-I", "-S", "-c", program], seconds=30) as running:
        pid = tmp_path / "pid"
        assert running.wait_for(lambda: pid.exists() and pid.read_text() != "")
        number = int(pid.read_text())
        assert running.children() == [number]
    deadline = time.monotonic() + 10
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)  # until init has asked for it
    assert not Path(f"/proc/{number}").exists() or _is_zombie(number)


def _is_zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


def test_nothing_waits_for_a_program_that_has_ended():
    with started(["-I", "-S", "-c", ""]) as program:
        assert not program.wait_for(lambda: False)
        assert program.end().code == 0
        program.kill()
        assert program.end().code == 0
    with pytest.raises(ChildProcessError):
        os.waitpid(program.pid, 0)
