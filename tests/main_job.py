"""The main job in processes of its own, and what it leaves in its workdir."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from as_users import QUICKLY
from orbax.checkpoint import v1 as ocp

from dlrm_jax.coordinator import free_address

ROOT = Path(__file__).parents[1]
PROGRAM = ("-m", "experiments.criteo")

SMALL = (
    "--table_rows=7,3000,40,500",
    "--examples=8000",
    "--embedding_dim=8",
    "--bottom_mlp=8",
    "--top_mlp=8,1",
    "--batch_size=64",
    "--evaluation_batch_size=512",
    "--log_every=1",
    "--eval_every=0",
    "--placements=C2=row_wise,C3=replicated,C4=table_wise",
)


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])


def environment() -> dict[str, str]:
    return os.environ | {"XLA_FLAGS": QUICKLY}


class Program:
    """A program that runs or has ended."""

    def __init__(self, process: BaseProcess, outputs: list[Path]):
        self._process = process
        self._outputs = outputs

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._outputs[0].read_text()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative if a signal has killed it; None if it still runs."""
        return self._process.exitcode

    def end(self, number: signal.Signals | None = None) -> subprocess.CompletedProcess[str]:
        """Sends the signal, if any; waits until the program has ended."""
        if number is not None:
            os.kill(self.pid, number)
        self._process.join(200)
        assert self.returncode is not None, self._outputs[1].read_text()[-3000:]
        return subprocess.CompletedProcess(
            self._process.name, self.returncode, *(path.read_text() for path in self._outputs)
        )


@contextlib.contextmanager
def in_background(
    *flags: str, cwd: Path = ROOT, program: tuple[str, ...] = PROGRAM, **variables: str
) -> Iterator[Program]:
    """Starts a module or code; at the end of the block it's killed if it still runs.

    It has these environment variables besides the usual ones. It runs in a fork of a process that
    has imported JAX and such: starting Python and importing them anew takes longer than most
    programs here.
    """
    command = [sys.executable, *program, *flags]
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory, name) for name in ("stdout", "stderr")]
        for path in outputs:
            path.touch()
        arguments = (command, cwd, environment() | variables, outputs)
        process = FORKS.Process(target=_be_program, args=arguments, name=" ".join(command))
        process.start()
        try:
            yield Program(process, outputs)
        finally:
            process.kill()
            process.join()


def run(
    *flags: str, cwd: Path = ROOT, program: tuple[str, ...] = PROGRAM, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end, as `in_background` starts it."""
    with in_background(*flags, cwd=cwd, program=program, **variables) as started:
        return started.end()


def _be_program(
    command: list[str], cwd: Path, variables: dict[str, str], outputs: list[Path]
) -> None:
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    faulthandler.dump_traceback_later(200, exit=True)
    os.environ.clear()
    os.environ.update(variables)
    # The program would start itself anew without these, and so import what is imported.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    os.chdir(cwd)
    sys.path[:0] = [str(cwd), str(ROOT)]
    _, kind, program, *flags = command
    sys.orig_argv, sys.argv = command, [program if kind == "-m" else kind, *flags]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(program, {"__name__": "__main__"})


def succeed(*flags: str) -> str:
    result = run(*flags)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def fails(fragment: str, *flags: str) -> None:
    result = run(*flags)
    assert result.returncode == 2, result.stderr[-2000:]
    message = result.stderr.strip()
    assert message.startswith("error: ")
    assert "\n" not in message, "one message, no traceback"
    assert fragment in message


def refused_by_hand(
    directory: Path,
    flags_of: Callable[[int], Sequence[str]],
    environment_of: Callable[[int], dict[str, str]] = lambda _: {},
) -> str:
    """Runs two processes, each in a directory of its own; gives the message that ends process 1.

    Args:
        directory: directory of theirs.
        flags_of: function that gives the flags of each process.
        environment_of: function that gives environment variables of each process.
    """
    unplaced = [flag for flag in SMALL if not flag.startswith("--placements")]
    where = (f"--workdir={directory / 'w'}", f"--coordinator={free_address()}", "--processes=2")

    def start(index: int) -> subprocess.CompletedProcess[str]:
        cwd = directory / str(index)
        cwd.mkdir()
        flags = (*where, f"--process={index}", *flags_of(index), *unplaced)
        variables: Any = {"PYTHONPATH": str(ROOT), **environment_of(index)}
        return run(*flags, cwd=cwd, **variables)

    with ThreadPoolExecutor() as both:
        first, second = both.map(start, range(2))
    assert second.returncode == 2, second.stderr[-2000:]
    assert first.returncode == 1, first.stderr[-2000:]
    assert "another process can't be reached" in first.stderr
    return second.stderr


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == sorted(set(steps)), "a step was recorded twice"
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read with Orbax alone."""
    path = workdir / "checkpoints" / f"{step:08d}"
    found = {}
    for item in [path / "dense", *sorted((path / "tables").iterdir())]:

        def visit(prefix: str, tree: object) -> None:
            if isinstance(tree, dict):
                for key, value in tree.items():
                    visit(f"{prefix}/{key}", value)
            else:
                found[prefix] = np.asarray(tree)

        metadata = ocp.metadata(str(item)).metadata
        as_numpy = _map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
        visit("", ocp.load(str(item), as_numpy))
    return found


def _map(function, tree):
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    return function(tree)
