"""A standby beside a run on data that don't grow."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from main_job import SMALL, Program, arrays, in_background, run, succeed

PROGRAM = ("-m", "dlrm_jax", "train")


def wait_for(seen: Callable[[], object], *programs: Program) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < deadline
        assert all(program.returncode is None for program in programs)
        time.sleep(0.01)


def steps(workdir: Path) -> list[int]:
    return sorted(int(x.name) for x in workdir.glob("checkpoints/*") if x.name.isdecimal())


@pytest.mark.parametrize(
    "more", [(), pytest.param(("--dynamic_ids=C2=900",), marks=pytest.mark.thorough)]
)
def test_it_goes_on_with_the_bits_of_an_unbroken_run(tmp_path: Path, more: tuple[str, ...]):
    workdir = tmp_path / "run"
    own = ("--mesh=1x2", *SMALL, *more)
    command = (*own, "--steps=1000000", "--checkpoint_every=25", f"--workdir={workdir}")
    with in_background(*command, program=PROGRAM) as trainer:
        wait_for(lambda: steps(workdir), trainer)
        with in_background(*command, "--standby", program=PROGRAM) as standby:
            wait_for(lambda: "standing by for" in standby.stdout, trainer)
            trainer.end(signal.SIGKILL)
            killed = steps(workdir)[-1]
            wait_for(lambda: steps(workdir)[-1] > killed, standby)
            result = standby.end(signal.SIGTERM)
    assert result.returncode == 143, result.stderr[-3000:]
    assert f"taking over {workdir}\nresuming from step {killed}" in result.stdout
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
        (("--publish=models",), "--publish has no effect with --standby"),
        (("--journal_seconds=1",), "--journal_seconds has no effect without --stream"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path: Path, given: tuple[str, ...], message: str):
    result = run(*SMALL, f"--workdir={tmp_path}/run", "--standby", *given, program=PROGRAM)
    assert result.returncode == 2
    assert message in result.stderr
