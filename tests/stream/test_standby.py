"""Standbys beside a run on a stream: who takes over, when, and that nothing is lost or doubled."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from main_job import Program, in_background, run
from publishing_run import compacted, files_in
from stream_job import PROGRAM, SIZES, assert_same, flags
from stream_log import log, publish

from dlrm_jax.publishing.published import newest
from dlrm_jax.training.journal_entry import read_entry

STARTS = np.cumsum([0, *SIZES]).tolist()
JOURNALED = ("--stream_checkpoint_seconds=60", "--journal_seconds=0.05")
LOGGING = (
    "-c",
    "import jax; jax.config.update('jax_log_compiles', True); "
    "from dlrm_jax.cli.main import main; main('train')",
)
PUBLISHED = ("--publish=models", "--publish_every_seconds=0")
OFTEN = ("--checkpoint_every=4", "--stream_checkpoint_seconds=0.5")


def come(directory: Path, *numbers: int) -> None:
    directory.mkdir(exist_ok=True)
    for i in numbers:
        rows = log(sum(SIZES)).slice(STARTS[i], SIZES[i])
        publish(directory, f"s{i:03d}.parquet", rows)


def wait_for(seen: Callable[[], object], *programs: Program) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < deadline
        assert all(program.returncode is None for program in programs)
        time.sleep(0.01)


def stands_by(program: Program) -> Callable[[], bool]:
    return lambda: "standing by for" in program.stdout


def latest(workdir: Path) -> int:
    """The step of the latest checkpoint, or of the last entry of its journal."""
    names = (path.name for path in workdir.glob("checkpoints/*"))
    step = max((int(name) for name in names if name.isdecimal()), default=0)
    entries = workdir.glob(f"checkpoints/{step:08d}.journal/0*")
    return max((read_entry(path)[0].step for path in entries), default=step)


def assert_published(models: Path, workdir: Path, expected: Path) -> None:
    """Base and deltas have the bytes of an export of the last checkpoint."""
    given = (f"--run={workdir}", f"--output={expected}")
    assert run("export", *given, program=("-m", "dlrm_jax")).returncode == 0
    published = newest(models)
    assert published
    count = len([*published.chain.rest()])
    assert files_in(compacted(models) if count else published.directory) == files_in(expected)


@pytest.mark.parametrize(
    ("number", "saved"),
    [
        pytest.param(signal.SIGKILL, OFTEN, marks=pytest.mark.thorough),
        pytest.param(signal.SIGTERM, (*OFTEN, *PUBLISHED), marks=pytest.mark.thorough),
        (signal.SIGKILL, (*JOURNALED, *PUBLISHED)),
    ],
)
def test_a_standby_goes_on_with_the_bits_of_an_unbroken_run(
    unbroken: Path, tmp_path: Path, number: signal.Signals, saved: tuple[str, ...]
):
    """A kill, and a move to another process, which goes on publishing, too."""
    directory, workdir, models = tmp_path / "segments", tmp_path / "run", tmp_path / "models"
    saved = tuple(x.replace("models", f"{models}") for x in saved)
    come(directory, 0, 1, 2)
    command = flags(directory, workdir, *saved, "--stream_idle_seconds=2")
    steps = sum(SIZES[:3]) // 16
    with in_background(*flags(directory, workdir, *saved), program=PROGRAM) as trainer:
        wait_for(lambda: latest(workdir) == steps, trainer)
        with in_background(*command, "--standby", program=LOGGING) as second:
            wait_for(stands_by(second), trainer)
            assert f"standing by for {workdir}, step {steps}" in second.stdout
            come(directory, 3)
            wait_for(lambda: latest(workdir) > steps, trainer, second)
            ended = trainer.end(number)
            assert ended.returncode == (143 if number == signal.SIGTERM else -number)
            come(directory, 4, 5)
            result = second.end()
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"taking over {workdir}\nresuming from step" in result.stdout
    assert ("and its journal to step" in result.stdout) == (JOURNALED[0] in saved)
    assert len(re.findall(r"Compiling jit\(train_step\)", result.stderr)) == 1
    assert_same(workdir, unbroken)
    if len(saved) > 2:
        assert "publish: goes on after step" in result.stdout
        assert_published(models, workdir, tmp_path / "expected")


@pytest.mark.thorough
def test_one_of_two_standbys_takes_over_and_the_other_waits_on(unbroken: Path, tmp_path: Path):
    directory, workdir = tmp_path / "segments", tmp_path / "run"
    come(directory, 0, 1)
    command = (*flags(directory, workdir, *OFTEN), "--standby")
    with (
        in_background(*command, program=PROGRAM) as trainer,  # nobody has the workdir
        in_background(*command, program=PROGRAM) as one,
    ):
        wait_for(lambda: latest(workdir), trainer, one)
        wait_for(lambda: any(stands_by(x)() for x in (trainer, one)))
        first, second = (one, trainer) if stands_by(trainer)() else (trainer, one)
        with in_background(*command, program=PROGRAM) as other:
            wait_for(stands_by(other), second)
            first.end(signal.SIGKILL)
            took = [second, other]
            wait_for(lambda: any("taking over" in x.stdout for x in took), *took)
            time.sleep(0.5)
            third = next(x for x in took if "taking over" not in x.stdout)
            took.remove(third)
            assert third.returncode is None
            come(directory, 2, 3, 4, 5)
            wait_for(lambda: latest(workdir) > sum(SIZES[:3]) // 16, *took)
            took[0].end(signal.SIGKILL)
            wait_for(lambda: latest(workdir) == sum(SIZES) // 16, third)
            result = third.end(signal.SIGTERM)
    assert result.returncode == 143
    assert "taking over" in result.stdout
    assert_same(workdir, unbroken)


def test_a_standby_writes_nothing_and_ctrl_c_ends_it(tmp_path: Path):
    directory, workdir = tmp_path / "segments", tmp_path / "run"
    come(directory, 0)

    def written() -> dict[str, int]:
        return {str(x): x.stat().st_mtime_ns for x in [workdir, *workdir.rglob("*")]}

    command = flags(directory, workdir)
    with in_background(*command, program=PROGRAM) as trainer:
        wait_for(lambda: (workdir / "metrics.jsonl").exists(), trainer)
        steps = SIZES[0] // 16  # then it waits for rows
        metrics = workdir / "metrics.jsonl"
        wait_for(lambda: len(metrics.read_text().splitlines()) >= steps, trainer)
        time.sleep(0.5)
        before = written()
        with in_background(*command, "--standby", program=PROGRAM) as standby:
            wait_for(stands_by(standby), trainer)
            assert f"standing by for {workdir}, no checkpoint yet" in standby.stdout
            result = standby.end(signal.SIGINT)
        assert trainer.returncode is None
        assert written() == before
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert "stopped by SIGINT" in result.stderr


@pytest.mark.thorough
def test_a_standby_of_another_run_ends_at_once(tmp_path: Path):
    directory, workdir = tmp_path / "segments", tmp_path / "run"
    come(directory, 0)
    with in_background(*flags(directory, workdir, *OFTEN), program=PROGRAM) as trainer:
        wait_for(lambda: latest(workdir), trainer)
        other = run(*flags(directory, workdir), "--standby", "--seed=9", program=PROGRAM)
        assert trainer.returncode is None
    assert other.returncode == 2
    assert "seed" in other.stderr
    assert other.stderr.count("\n") == 1
