"""Programs under observation: limited in time and memory, killed; and how they ended.

    with started(["-m", "dlrm_jax", "train", ...], seconds=60) as program:
        if program.wait_for(lambda: checkpoint.exists()):
            program.kill()
        ended = program.end()

A program runs in a process group of its own. Whatever it has started ends with the context.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

ROOT = Path(__file__).parents[2]
"""The top of the checkout, where programs run."""

Outcome = Literal["done", "error", "killed", "traceback", "hang", "memory", "other"]

_POLL_SECONDS = 0.001


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a program.

    Attributes:
        code: exit code; negative for the signal that ended it.
        stdout: text of standard output.
        stderr: text of standard error.
        seconds: time that it ran.
        peak_bytes: largest resident memory of it or of a process that it waited for; at least that
            of the process that started it.
        exceeded: limit that it was killed for.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int
    exceeded: Literal["time", "memory"] | None = None

    @property
    def outcome(self) -> Outcome:
        """The kind of end.

        ``done`` is exit code 0, ``error`` 2 with exactly one line that begins with ``error:``.
        Neither has a traceback. ``killed`` is the end by a signal, ``hang`` and ``memory`` by the
        limits, ``other`` all else.
        """
        if self.exceeded:
            return "hang" if self.exceeded == "time" else "memory"
        if "Traceback (most recent call last)" in self.stderr or "Fatal Python" in self.stderr:
            return "traceback"
        if self.code < 0:
            return "killed"
        if self.code == 0:
            return "done"
        return "error" if self.code == 2 and len(self.errors) == 1 else "other"

    @property
    def errors(self) -> list[str]:
        """The lines on standard error that begin with ``error:``."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]

    def __str__(self) -> str:
        said = self.errors or self.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        return f"{self.outcome}, exit code {self.code}, {self.seconds:.1f} s: {said[-1]}"


class Process(Protocol):
    """A child of this process, whose exit code is found by `Program`."""

    pid: int
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None
    returncode: Any


class Program:
    """A program that runs; see `started`."""

    def __init__(self, process: Process, seconds: float, memory: int):
        self._process = process
        self._outputs = [_Reader(stream) for stream in (process.stdout, process.stderr)]
        self._begun = time.monotonic()
        self._seconds = seconds
        self._memory = memory
        self._ended: tuple[float, int] | None = None  # seconds, bytes
        self._exceeded: Literal["time", "memory"] | None = None

    @property
    def pid(self) -> int:
        """The number of its process, which is the number of its group as well."""
        return self._process.pid

    def is_running(self) -> bool:
        """Whether it runs; kills it if it is over a limit."""
        if self._ended:
            return False
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self._begun
        if pid:
            self._process.returncode = os.waitstatus_to_exitcode(status)  # nothing asks again
            self._ended = seconds, usage.ru_maxrss * 1024
        elif not self._exceeded and (seconds > self._seconds or _resident(self.pid) > self._memory):
            self._exceeded = "time" if seconds > self._seconds else "memory"
            self.kill()
        return not pid

    def wait_for(self, seen: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Waits until something is seen, or for some time; whether the program still runs then."""
        deadline = time.monotonic() + seconds
        while self.is_running():
            if seen() or time.monotonic() >= deadline:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def sleep(self, seconds: float) -> bool:
        """Waits for a time; whether the program still runs then."""
        return self.wait_for(lambda: False, seconds)

    def children(self) -> list[int]:
        """The processes that it has started and that run, oldest first."""
        return _children(self.pid)

    def printed(self) -> str:
        """What it has written to standard output so far."""
        return self._outputs[0].so_far()

    def kill(self) -> None:
        """Kills it and all that it has started with SIGKILL, at once."""
        if self._ended:
            return
        doomed = [self.pid, *_descendants(self.pid)]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid in doomed[1:]:  # they may have process groups of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> Ended:
        """Waits until it has ended."""
        while self.is_running():
            time.sleep(5 * _POLL_SECONDS)
        assert self._ended is not None
        stdout, stderr = (output.text() for output in self._outputs)
        return Ended(self._process.returncode, stdout, stderr, *self._ended, self._exceeded)


class _Reader(threading.Thread):
    """What comes out of a pipe. A file would have the limits of the program's files."""

    def __init__(self, pipe: IO[bytes] | None):
        super().__init__(daemon=True)
        assert pipe is not None
        self._pipe = pipe
        self._read: list[bytes] = []
        self.start()

    def run(self) -> None:
        with self._pipe:
            for line in self._pipe:
                self._read.append(line)

    def so_far(self) -> str:
        """The lines that have come."""
        return b"".join(self._read).decode(errors="replace")

    def text(self) -> str:
        """All of it; of a program that has ended, but not what it has started, so far."""
        self.join(timeout=10)
        return self.so_far()


@contextlib.contextmanager
def started(
    arguments: Sequence[str],
    variables: Mapping[str, str] | None = None,
    seconds: float = 300,
    memory: int = 8 << 30,
    file_bytes: int | None = None,
    cwd: Path = ROOT,
) -> Iterator[Program]:
    """Context in which a Python program runs; at its end, it is killed if it still runs.

    Args:
        arguments: arguments for the Python interpreter.
        variables: environment variables besides the usual ones.
        seconds: time after which it is killed and counts as a hang.
        memory: resident bytes above which it is killed.
        file_bytes: largest size of a file that it may write.
        cwd: directory that it runs in.

    Yields:
        The program.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if file_bytes is not None:  # the process inherits it
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=os.environ | dict(variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    program = Program(process, seconds, memory)
    try:
        yield program
    finally:
        program.kill()
        program.end()


def run(
    arguments: Sequence[str], variables: Mapping[str, str] | None = None, **limits: Any
) -> Ended:
    """Runs a Python program to its end, or to a limit; arguments as for `started`."""
    with started(arguments, variables, **limits) as program:
        return program.end()


def _resident(pid: int) -> int:
    """The bytes of a process in memory, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _children(pid: int) -> list[int]:
    try:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _descendants(pid: int) -> list[int]:
    return [x for child in _children(pid) for x in (child, *_descendants(child))]
