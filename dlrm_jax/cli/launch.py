"""The processes of a run on this machine: started, signalled and ended together."""

from __future__ import annotations

import dataclasses
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from dlrm_jax.console import status
from dlrm_jax.coordinator import free_address
from dlrm_jax.signals import SIGNALS, deferred, end_process, kept_for_child
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.journal_files import entries_in
from dlrm_jax.training.retention import journal_of

# How long the others may take to end by themselves and to print their errors after one has ended.
_GRACE_SECONDS = 10

# How long they may take to end after a second signal, which ends those that hear it at once.
_LAST_SECONDS = 1.0

# What a process prints that ends because it can't reach another one; and what JAX prints, before a
# stack without information, when it ends a process for this reason.
ANOTHER_LOST = "another process can't be reached"
_ENDED_BY_JAX = "Terminating process because the JAX distributed service"

# Tells a process which one has started it.
_LAUNCHER = "DLRM_JAX_LAUNCHER"


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a process; a negative code is a signal, ``by_others`` the loss of another one."""

    index: int
    code: int
    by_others: bool


def launch(count: int, workdir: Path) -> int:
    """Runs this program's command in several processes until all have ended.

    Process 0 has this one's standard output. Lines on standard error are shown with the number of
    their process, equal lines only once. Signals that stop it are passed on to all; those that hang
    are killed after a second one. Returns the exit code: 0, or that of the process that failed
    first, as a shell gives it.
    """
    address = free_address()
    commands = [
        [sys.executable, *sys.orig_argv[1:], f"--workdir={workdir}", f"--coordinator={address}",
         f"--processes={count}", f"--process={index}"]
        for index in range(count)
    ]  # fmt: skip
    with _started(commands) as processes:
        arriving = _follow(processes)
        ended: list[Ended] = []
        while len(ended) < count and not any(process.code for process in ended):
            with suppress(queue.Empty):
                ended.append(arriving.get(timeout=1))
        deadline = time.monotonic() + _GRACE_SECONDS
        while len(ended) < count and time.monotonic() < deadline:
            with suppress(queue.Empty):
                ended.append(arriving.get(timeout=0.1))
    failed = [process for process in ended if process.code]
    if not failed:
        return 0
    first = next((process for process in failed if not process.by_others), failed[0])
    if len(ended) < count or any(process.code != first.code for process in ended):
        # Otherwise all ended in the same way, and have said why.
        missing = [index for index in range(count) if index not in {x.index for x in ended}]
        status(f"error: {_account(first, missing)}; {_resuming(workdir)}", error=True)
    return first.code if first.code >= 0 else 128 - first.code


def launch_jobs(count: int) -> list[int]:
    """Runs this program's command, with ``--jobs=1``, in processes that share nothing but files.

    All have this one's standard output. Their errors and signals are as in `launch`. One that ends
    early leaves the others alone. Returns the exit codes, as a shell gives them.
    """
    command = [sys.executable, *sys.orig_argv[1:], "--jobs=1"]
    with _started([command] * count, all_shown=True) as processes:
        arriving = _follow(processes, "job")
        ended: list[Ended] = []
        while len(ended) < count:
            with suppress(queue.Empty):
                ended.append(arriving.get(timeout=1))
    for each in ended:
        if each.code < 0:
            name = signal.Signals(-each.code).name
            status(f"job {each.index} was killed by {name}", error=True)
    return [each.code if each.code >= 0 else 128 - each.code for each in ended]


def is_launched() -> bool:
    """Whether `launch` or `launch_jobs` has started this process."""
    return _LAUNCHER in os.environ


def end_with_launcher() -> None:
    """In a process that `launch` or `launch_jobs` has started, makes its death this one's."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


@contextmanager
def _started(
    commands: Iterable[Sequence[str]], all_shown: bool = False
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that get the signals of this one, and that end with the context.

    One that waits for another in a computation hears no signal. If such ones are there a while
    after a second signal, the end of the context ends this process, too.
    """
    processes: list[subprocess.Popen[str]] = []
    received: list[int] = []
    forced = threading.Event()

    def force() -> None:
        forced.set()
        for process in processes:
            process.kill()

    timer = threading.Timer(_LAST_SECONDS, force)
    timer.daemon = True

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        for process in processes:
            process.send_signal(number)
        if number != signal.SIGHUP:  # never counts, see `signals`
            received.append(number)
            if len(received) == 2:
                timer.start()

    # An ignored signal stays ignored, in the processes too, as a shell's background jobs have it.
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {}
    try:
        with deferred(), kept_for_child():  # a signal that comes now ends those that there are
            for index, command in enumerate(commands):
                processes.append(_start(command, all_shown or index == 0))
        for number in heard:
            previous[number] = signal.signal(number, forward)
        yield processes
    finally:
        timer.cancel()
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)
        if forced.is_set():
            end_process(received[1], "; processes that hung were killed")


def _start(command: Sequence[str], is_shown: bool) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=os.environ | {_LAUNCHER: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=None if is_shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C comes from here, and only once
    )


def _follow(
    processes: Sequence[subprocess.Popen[str]], called: str = "process"
) -> queue.Queue[Ended]:
    """Shows their standard errors, and queues each process that ends."""
    ended: queue.Queue[Ended] = queue.Queue()
    shown: set[str] = set()

    def follow(index: int, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        by_jax = by_others = False
        with process.stderr as lines:
            for line in lines:  # to the end: a full pipe would stop the process
                by_jax = by_jax or _ENDED_BY_JAX in line
                by_others = by_others or by_jax or ANOTHER_LOST in line
                if line not in shown and not by_jax:
                    shown.add(line)
                    status(f"[{called} {index}] {line}" if index else line, error=True, end="")
        ended.put(Ended(index, process.wait(), by_others))

    for index, process in enumerate(processes):
        threading.Thread(target=follow, args=(index, process), daemon=True).start()
    return ended


def _account(first: Ended, missing: Sequence[int]) -> str:
    """The sentence that says what happened."""
    if first.by_others:
        silent = " and ".join(str(index) for index in missing) or "another one"
        return f"process {first.index} lost its connection to {silent}; all were stopped"
    code = first.code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"process {first.index} {how}; the others were stopped"


def _resuming(workdir: Path) -> str:
    checkpoints = Checkpoints(workdir / "checkpoints", {})
    steps, journal = checkpoints.steps(), ""
    if steps and entries_in(journal_of(checkpoints.directory / f"{steps[-1]:08d}")):
        journal = " and its journal"
    then = "to start anew: nothing was saved yet"
    if steps:
        then = f"to resume from step {steps[-1]}{journal}"
    return f"run the same command with --workdir={workdir} {then}"
