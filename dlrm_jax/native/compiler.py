"""Compiles the C++ files in this directory to a shared library, for this machine's processor."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from dlrm_jax.errors import UserError
from dlrm_jax.signals import deferred

SOURCES = sorted(Path(__file__).parent.glob("*.cc"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))

# Not -ffast-math: it makes a library change the rounding of tiny numbers in its whole process.
OPTIONS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-pthread",
    "-fPIC",
)

_POLL_SECONDS = 0.02


def compile_library(library: Path) -> None:
    """Compiles it with ``$CXX`` or else c++, file by file side by side.

    Whatever ends it early, the first error of a file or a signal, ends the compilers that run.

    Args:
        library: file to make; its directory gets the objects, and what the compiler prints.

    Raises:
        UserError: there is no compiler, or it reports an error.
    """
    objects = [library.with_name(f"{source.stem}.o") for source in SOURCES]
    # -isystem, not -I: users can't fix warnings of the header.
    include = ("-isystem", jax.ffi.include_dir())
    _make(
        {made: (*include, "-c", str(source)) for source, made in zip(SOURCES, objects, strict=True)}
    )
    _make({library: ("-shared", *map(str, objects))})


def _make(files: Mapping[Path, Sequence[str]]) -> None:
    """Makes files, each by a compiler with these arguments; as many at once as there are cores."""
    waiting = list(files.items())
    running: list[_Compiler] = []
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                with deferred():  # a signal comes when the list has the new one
                    running.append(_Compiler(*waiting.pop()))
            time.sleep(_POLL_SECONDS)
            running = [each for each in running if not each.has_ended()]
    finally:
        for each in running:
            each.terminate()
        for each in running:
            each.wait()


class _Compiler:
    """A compiler that runs, in a session of its own: a terminal's Ctrl-C comes from here alone.

    Args:
        made: the file that it makes; what it prints is beside it.
        arguments: its other arguments.

    Raises:
        UserError: there is no compiler.
    """

    def __init__(self, made: Path, arguments: Sequence[str]):
        self._command = [*compiler(), *OPTIONS, *arguments, "-o", str(made)]
        self._printed = made.with_suffix(".txt")
        with self._printed.open("wb") as printed:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=printed,
                    start_new_session=True,
                )
            except OSError as error:
                raise UserError(
                    f"no C++ compiler named {self._command[0]} can be started: {error.strerror}; "
                    f"install one, such as g++ or clang++, or name it in CXX"
                ) from None

    def has_ended(self) -> bool:
        """Whether it has made the file.

        Raises:
            UserError: it has failed.
        """
        code = self._process.poll()
        if code:
            said = self._printed.read_text(encoding="utf-8", errors="replace").strip()
            raise UserError(f"{shlex.join(self._command)} failed:\n{said or f'exit code {code}'}")
        return code is not None

    def terminate(self) -> None:
        """Ends it if it still runs, with the processes that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)

    def wait(self) -> None:
        """Waits until it has ended."""
        self._process.wait()


def compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, or else c++.

    Raises:
        UserError: ``$CXX`` is no command line.
    """
    try:
        words = shlex.split(command())
        if not words[0]:
            raise ValueError("No name")
        return words
    except ValueError as error:
        raise UserError(
            f"CXX: expected the command of a C++ compiler, such as g++, got {command()!r}: {error}"
        ) from None


def command() -> str:
    """The text of `compiler`."""
    return os.environ.get("CXX", "").strip() or "c++"
