"""The processes of a run on this machine: started together, told together, ended together."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dlrm_jax.processes import free_address
from dlrm_jax.training.checkpoint import Checkpoints

# How long the others may take to end by themselves, and to say what they have to, after one has.
_GRACE_SECONDS = 10

# Where JAX ends a process because another one has gone. A stack follows that says nothing of it.
_ENDED_BY_OTHERS = "Terminating process because the JAX distributed service"


def launch(count: int, workdir: Path) -> int:
    """Runs this program's command in several processes, until all have ended.

    Process 0 has this one's standard output. What the others write as errors is shown with their
    number, and lines that several write only once. SIGTERM and Ctrl-C are passed on to all.

    Args:
        count: of the processes.
        workdir: of the run.

    Returns:
        the exit code: 0, or that of the process that failed first, as a shell gives it.
    """
    address = free_address()
    commands = [
        [sys.executable, *sys.orig_argv[1:], f"--workdir={workdir}", f"--coordinator={address}",
         f"--processes={count}", f"--process={index}"]
        for index in range(count)
    ]  # fmt: skip
    with _started(commands) as processes:
        ended = _follow(processes)
        codes: dict[int, int] = {}
        while len(codes) < count and not any(codes.values()):
            _note(ended, codes, timeout=1)
        deadline = time.monotonic() + _GRACE_SECONDS
        while len(codes) < count and time.monotonic() < deadline:
            _note(ended, codes, timeout=0.1)
    failed, code = next(((i, code) for i, code in codes.items() if code), (0, 0))
    if code and set(codes.values()) != {code}:  # if all ended in the same way, they have said why
        print(f"error: {_account(failed, code, workdir)}", file=sys.stderr)
    return code if code >= 0 else 128 - code


@contextmanager
def _started(commands: Sequence[Sequence[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that get the signals of this one, and that don't outlive the block."""
    processes: list[subprocess.Popen[str]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        for process in processes:
            process.send_signal(number)

    previous = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        for index, command in enumerate(commands):
            processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=None if index == 0 else subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # a terminal's Ctrl-C comes from here, and only once
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _follow(processes: Sequence[subprocess.Popen[str]]) -> queue.Queue[tuple[int, int]]:
    """Shows what they write as errors; gives number and exit code of each when it has ended."""
    ended: queue.Queue[tuple[int, int]] = queue.Queue()
    shown: set[str] = set()

    def follow(index: int, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        consequence = False
        for line in process.stderr:
            consequence = consequence or _ENDED_BY_OTHERS in line
            if line not in shown and not consequence:
                shown.add(line)
                sys.stderr.write(f"[process {index}] {line}" if index else line)
                sys.stderr.flush()
        ended.put((index, process.wait()))

    for index, process in enumerate(processes):
        threading.Thread(target=follow, args=(index, process), daemon=True).start()
    return ended


def _note(ended: queue.Queue[tuple[int, int]], codes: dict[int, int], timeout: float) -> None:
    try:
        index, code = ended.get(timeout=timeout)
        codes[index] = code
    except queue.Empty:
        return


def _account(index: int, code: int, workdir: Path) -> str:
    """What happened, and how to go on."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    steps = Checkpoints(workdir / "checkpoints", {}).steps()
    return (
        f"process {index} {how}; the others were stopped; the same command with "
        f"--workdir={workdir} "
        + (f"goes on from step {steps[-1]}" if steps else "starts anew, as nothing was saved yet")
    )
