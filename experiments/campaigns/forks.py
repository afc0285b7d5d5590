"""Programs in forks of a process that has imported JAX and such, so that they start at once.

The process must not have used a device or Polars: their threads don't survive a fork.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import faulthandler
import gc
import os
import runpy
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from dlrm_jax.cli.flags import FLAGS, own_flags
from experiments.campaigns.harness import ROOT, Ended, Program


def preload() -> None:
    """Imports what most programs import; nothing of it defines flags or uses a device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dlrm_jax.cli.page
        import dlrm_jax.cli.pictures
        import dlrm_jax.data.preprocessing.pipeline
        import dlrm_jax.job  # noqa: F401
    gc.collect()
    gc.freeze()


@dataclasses.dataclass
class _Fork:
    """What `Program` wants to know of a process."""

    pid: int
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None
    returncode: int | None = None


def run(
    command: Sequence[str],
    cwd: Path,
    variables: Mapping[str, str],
    seconds: float = 60,
    memory: int = 2 << 30,
) -> Ended:
    """Runs a module to its end, or to a limit.

    Args:
        command: name of the module, then its arguments.
        cwd: directory that it runs in.
        variables: environment variables besides the usual ones.
        seconds: time after which it is killed and counts as a hang; its stack is printed before.
        memory: resident bytes above which it is killed.
    """
    with _forked(lambda: _be_program(command, seconds), cwd, variables, seconds, memory) as program:
        return program.end()


def call(function: Callable[[], object], cwd: Path, variables: Mapping[str, str]) -> Ended:
    """Calls a function in a fork, where it may use devices and Polars and define flags."""

    def called() -> None:
        _forget_flags()
        function()

    with _forked(called, cwd, variables, 300, 8 << 30) as program:
        return program.end()


@contextlib.contextmanager
def _forked(
    body: Callable[[], object],
    cwd: Path,
    variables: Mapping[str, str],
    seconds: float,
    memory: int,
) -> Iterator[Program]:
    sys.stdout.flush()
    sys.stderr.flush()
    pipes = [os.pipe(), os.pipe()]
    pid = os.fork()
    if not pid:
        _end(body, [writing for _, writing in pipes], cwd, variables)
    for _, writing in pipes:
        os.close(writing)
    stdout, stderr = (os.fdopen(reading, "rb") for reading, _ in pipes)
    program = Program(_Fork(pid, stdout, stderr), seconds, memory)
    try:
        yield program
    finally:
        program.kill()
        program.end()


def _end(
    body: Callable[[], object], outputs: Sequence[int], cwd: Path, variables: Mapping[str, str]
) -> None:
    """Does something in this process, and ends it as the interpreter would."""
    code: object = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, pipe in enumerate(outputs, 1):
            os.dup2(pipe, descriptor)
            os.close(pipe)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(variables)
        os.chdir(cwd)
        try:
            body()
            code = 0
        except SystemExit as request:
            code = request.code or 0
            if not isinstance(code, int):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _be_program(command: Sequence[str], seconds: float) -> None:
    # Its own timer is a thread, which wouldn't survive a fork.
    faulthandler.register(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 0.9 * seconds)
    _forget_flags()
    sys.path.insert(0, str(ROOT))
    sys.orig_argv = [sys.executable, "-m", *command]
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _forget_flags() -> None:
    """Removes the flags of the program that has forked."""
    for flag in own_flags():
        if flag.name in FLAGS:
            delattr(FLAGS, flag.name)
    FLAGS.unparse_flags()
