"""A standby beside a run on data that don't grow."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from main_job import SMALL, Program, arrays, in_background, run, succeed

from dlrm_jax.training.journal_entry import read_entry

PROGRAM = ("-m", "dlrm_jax", "train")
DYNAMIC = ("--dynamic_ids=C2=900",)


def wait_for(seen: Callable[[], object], *programs: Program) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < deadline
        assert all(program.returncode is None for program in programs)
        time.sleep(0.01)


def latest(workdir: Path) -> int:
    """The step of the latest checkpoint, or of the last entry of its journal."""
    step = max(steps(workdir), default=0)
    entries = workdir.glob(f"checkpoints/{step:08d}.journal/0*")
    return max((read_entry(path)[0].step for path in entries), default=step)


def steps(workdir: Path) -> list[int]:
    return sorted(int(x.name) for x in workdir.glob("checkpoints/*") if x.name.isdecimal())


JOURNALED = ("--checkpoint_every=1000000", "--journal_seconds=0.05")
OFTEN = ("--checkpoint_every=25",)


@pytest.mark.thorough  # by default `tests/stream/test_standby.py` has the standby of a stream
@pytest.mark.parametrize(
    ("saved", "more"),
    [(JOURNALED, ()), (OFTEN, ()), (OFTEN, DYNAMIC), (JOURNALED, DYNAMIC)],
)
def test_it_goes_on_with_the_bits_of_an_unbroken_run(
    tmp_path: Path, saved: tuple[str, ...], more: tuple[str, ...]
):
    workdir = tmp_path / "run"
    own = ("--mesh=1x2", *SMALL, *more)
    command = (*own, "--steps=1000000", *saved, f"--workdir={workdir}")
    with in_background(*command, program=PROGRAM) as trainer:
        wait_for(lambda: steps(workdir), trainer)
        with in_background(*command, "--standby", program=PROGRAM) as standby:
            wait_for(lambda: "standing by for" in standby.stdout, trainer)
            seen = latest(workdir)
            wait_for(lambda: latest(workdir) > seen, trainer, standby)
            trainer.end(signal.SIGKILL)
            killed = latest(workdir)
            wait_for(lambda: latest(workdir) > killed, standby)
            result = standby.end(signal.SIGTERM)
    assert result.returncode == 143, result.stderr[-3000:]
    assert f"taking over {workdir}\nresuming from step" in result.stdout
    journaled = " and its journal to" if saved == JOURNALED else "resuming from"
    assert f"{journaled} step {killed} in" in result.stdout
    last = steps(workdir)[-1]
    succeed(*own, f"--steps={last}", f"--workdir={tmp_path / 'unbroken'}")
    expected, found = arrays(tmp_path / "unbroken", last), arrays(workdir, last)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--eval_only",), "--standby has no effect with --eval_only"),
        (("--processes=2",), "--processes: expected 1 with --standby, got 2"),
        (("--publish=.",), "publish: expected a new directory, or one that train --publish has"),
        (("--journal_seconds=1", "--checkpoint_every=0"), "give --checkpoint_every"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path: Path, given: tuple[str, ...], message: str):
    result = run(*SMALL, f"--workdir={tmp_path}/run", "--standby", *given, program=PROGRAM)
    assert result.returncode == 2
    assert message in result.stderr
