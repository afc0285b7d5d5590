"""The main job in processes of its own, and what it leaves in its workdir."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from as_users import QUICKLY
from orbax.checkpoint import v1 as ocp

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


def environment() -> dict[str, str]:
    return os.environ | {"XLA_FLAGS": QUICKLY}


def run(
    *flags: str, cwd: Path = ROOT, program: tuple[str, ...] = PROGRAM, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end, with these environment variables besides the usual ones.

    A module runs in a fork of a process that has imported JAX and such: starting Python and
    importing them anew takes longer than most programs here. Others are started as users do it.
    """
    command, variables = [sys.executable, *program, *flags], environment() | variables
    if program[:1] == ("-m",):
        return _run_forked(command, cwd, variables)
    return subprocess.run(
        command,
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["absl.app", "flax.nnx", "optax", "orbax.checkpoint.v1", "polars"])


def _run_forked(
    command: list[str], cwd: Path, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory, name) for name in ("stdout", "stderr")]
        process = FORKS.Process(target=_be_program, args=(command, cwd, variables, outputs))
        process.start()
        process.join()
        code = process.exitcode
        assert code is not None
        return subprocess.CompletedProcess(command, code, *(path.read_text() for path in outputs))


def _be_program(
    command: list[str], cwd: Path, variables: dict[str, str], outputs: list[Path]
) -> None:
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    faulthandler.dump_traceback_later(200, exit=True)
    os.environ.clear()
    os.environ.update(variables)
    # The program would start itself anew without these, and so import what is imported.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    os.chdir(cwd)
    sys.path[:0] = [str(cwd), str(ROOT)]
    _, _, module, *flags = command
    sys.orig_argv, sys.argv = command, [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


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


@contextlib.contextmanager
def in_background(*flags: str) -> Iterator[subprocess.Popen[str]]:
    """Starts it; at the end of the block it's killed if it still runs."""
    with subprocess.Popen(
        [sys.executable, *PROGRAM, *flags],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


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
