"""The main job in two processes: what ends it, and going on in one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from main_job import (
    ROOT,
    SMALL,
    Program,
    arrays,
    fails,
    in_background,
    losses,
    refused_by_hand,
    run,
    succeed,
    summary,
)

from dlrm_jax.embedding import Plan
from dlrm_jax.embedding.plan import table_wise
from dlrm_jax.training.metadata import read_metadata

TWO = ("--mesh=2x4", "--processes=2", *SMALL)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def processes_of(launcher: Program) -> list[int]:
    """The ids of the processes that it has started, in their order."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(number) for number in children.read_text().split()]


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # dead, but nobody has asked yet


def saved(workdir: Path) -> list[int]:
    directory = workdir / "checkpoints"
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdecimal())


def wait_until(condition, launcher: Program) -> None:
    deadline = time.monotonic() + 120
    while not condition() and launcher.returncode is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert launcher.returncode is None, launcher.end().stderr[-3000:]


@contextlib.contextmanager
def until_it_saves(workdir: Path, *flags: str) -> Iterator[Program]:
    """Starts it, and goes on when it has saved something new."""
    before = saved(workdir)
    with in_background(*flags) as launcher:
        wait_until(lambda: set(saved(workdir)) - set(before), launcher)
        yield launcher


def assert_like(unbroken: Path, workdir: Path) -> None:
    for split in ("train", "validation", "test"):
        difference = summary(workdir)[split]["log_loss"] - summary(unbroken)[split]["log_loss"]
        assert abs(difference) < 1e-5


# Process 0 is the coordinator.
@pytest.mark.thorough  # experiments.campaigns.kills tries it at many instants
@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_others_and_one_goes_on(
    unbroken: Path, tmp_path: Path, victim: int
):
    flags = (*SMALL, "--steps=40", "--checkpoint_every=3", f"--workdir={tmp_path}")
    with until_it_saves(tmp_path, "--mesh=2x4", "--processes=2", *flags) as launcher:
        processes = processes_of(launcher)
        os.kill(processes[victim], signal.SIGKILL)
        ended = launcher.end()
    stderr = ended.stderr
    assert ended.returncode == 128 + signal.SIGKILL
    assert f"process {victim} was killed by SIGKILL; the others were stopped" in stderr
    assert f"to resume from step {saved(tmp_path)[-1]}" in stderr
    assert "Traceback" not in stderr
    assert not any(is_running(process) for process in processes)

    succeed("--mesh=2x4", *flags)
    assert summary(tmp_path)["resumed_from"] >= 3
    assert_like(unbroken, tmp_path)

    evaluated = (flag for flag in flags if not flag.startswith("--steps="))
    count = 2 if victim == 0 else 1  # several processes evaluate at the end of each run, too
    succeed("--mesh=4x2", f"--processes={count}", *evaluated, "--eval_only")
    (tmp_path / "evaluation.json").rename(tmp_path / "summary.json")
    assert_like(unbroken, tmp_path)


@pytest.mark.thorough  # test_living_processes compares all but the death
def test_with_dynamic_ids_a_killed_process_changes_no_bit(tmp_path: Path):
    ids = "--dynamic_ids=C2=900:parts=5:admit_count=2,C4=400"
    flags = ("--mesh=2x2", "--processes=2", *SMALL, ids, "--steps=30", "--checkpoint_every=3")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    succeed(*flags, f"--workdir={alone}")
    with until_it_saves(killed, *flags, f"--workdir={killed}") as launcher:
        os.kill(processes_of(launcher)[1], signal.SIGKILL)
        ended = launcher.end()
    assert ended.returncode == 128 + signal.SIGKILL
    assert "process 1 was killed by SIGKILL; the others were stopped" in ended.stderr
    assert "Traceback" not in ended.stderr
    succeed(*flags, f"--workdir={killed}")
    assert summary(killed)["resumed_from"]
    assert losses(killed) == losses(alone)
    expected = arrays(alone, 30)
    for name, array in arrays(killed, 30).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    numbers = [read_metadata(x / "checkpoints" / "00000030") for x in (alone, killed)]
    assert numbers[0]["checksums"] == numbers[1]["checksums"]  # of the maps, too


@pytest.mark.thorough
def test_killed_processes_stop_early_and_cut_the_rate_as_one_does(tmp_path: Path):
    stopping = ("--eval_every=2", "--plateau_factor=0.5", "--plateau_patience=1", "--patience=3")
    # So high a rate that evaluations soon get worse.
    flags = (*SMALL, *stopping, "--learning_rate=1", "--steps=200", "--checkpoint_every=3")
    alone, killed = (f"--workdir={tmp_path / name}" for name in ("alone", "killed"))
    succeed("--mesh=2x4", *flags, alone)
    with until_it_saves(tmp_path / "killed", "--mesh=2x4", "--processes=2", *flags, killed) as one:
        os.kill(processes_of(one)[1], signal.SIGKILL)
        one.end()
    succeed("--mesh=2x4", "--processes=2", *flags, killed)
    expected, found = summary(tmp_path / "alone"), summary(tmp_path / "killed")
    assert found["stopped_early"]
    assert found["resumed_from"]
    for name in ("steps", "best_step"):
        assert found[name] == expected[name]
    assert_like(tmp_path / "alone", tmp_path / "killed")
    assert cuts(tmp_path / "killed") == cuts(tmp_path / "alone") != []


def cuts(workdir: Path) -> list[str]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if "learning_rate" in line]


def test_a_signal_to_the_launcher_saves(tmp_path: Path):
    flags = ("--mesh=1x2", "--processes=2", *SMALL, f"--workdir={tmp_path}")
    flags += ("--steps=1000000", "--checkpoint_every=0")
    metrics = tmp_path / "metrics.jsonl"
    with in_background(*flags) as launcher:
        wait_until(lambda: metrics.exists() and metrics.stat().st_size, launcher)
        processes = processes_of(launcher)
        ended = launcher.end(signal.SIGTERM)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert ended.stderr.count("stopped by SIGTERM; everything is saved") == 1
    assert ended.stderr.count("\n") == 1
    assert saved(tmp_path) == [max(losses(tmp_path))]
    assert not any(is_running(process) for process in processes)


WAITING = """
import os, sys, time
from pathlib import Path
from dlrm_jax.cli.launch import end_with_launcher, launch
if not any(flag.startswith("--coordinator") for flag in sys.argv):
    sys.exit(launch(2, Path("never made")))
end_with_launcher()
Path(str(os.getpid())).touch()
time.sleep(600)
"""


def test_processes_end_with_their_launcher(tmp_path: Path):
    program = ("-c", WAITING)
    with in_background(program=program, cwd=tmp_path, PYTHONPATH=str(ROOT)) as launcher:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, launcher)
        processes = processes_of(launcher)
    deadline = time.monotonic() + 60
    while any(is_running(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(processes) == 2
    assert not any(is_running(process) for process in processes)


HANGING = """
import os, signal, sys, time
from pathlib import Path
from dlrm_jax.cli.launch import launch
if not any(flag.startswith("--coordinator") for flag in sys.argv):
    sys.exit(launch(2, Path("never made")))
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
Path(str(os.getpid())).touch()
if "--process=1" in sys.argv:
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(600)
"""


@pytest.mark.thorough
def test_a_second_signal_ends_processes_that_hang(tmp_path: Path):
    program = ("-c", HANGING)
    with in_background(program=program, cwd=tmp_path, PYTHONPATH=str(ROOT)) as launcher:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, launcher)
        processes = processes_of(launcher)
        os.kill(launcher.pid, signal.SIGHUP)
        os.kill(launcher.pid, signal.SIGINT)
        time.sleep(1.5)
        assert launcher.returncode is None
        assert all(map(is_running, processes))
        ended = launcher.end(signal.SIGINT)
    assert ended.returncode == 128 + signal.SIGINT
    assert ended.stderr == "stopped by SIGINT; processes that hung were killed\n"
    assert not any(map(is_running, processes))


LOSING = """
import os, signal, sys, time
from pathlib import Path
from dlrm_jax.cli.launch import ANOTHER_LOST, launch
if not any(flag.startswith("--coordinator") for flag in sys.argv):
    sys.exit(launch(2, Path("never made")))
if "--process=0" in sys.argv:
    sys.exit(f"error: {ANOTHER_LOST}")
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.thorough
def test_the_process_that_was_lost_is_named_though_another_ended_first():
    result = run(program=("-c", LOSING))
    assert result.returncode == 128 + signal.SIGKILL
    assert "process 1 was killed by SIGKILL; the others were stopped" in result.stderr


def test_processes_started_elsewhere_need_one_workdir():
    flags = ("--processes=2", "--coordinator=host:1", "--process=1")
    fails("--coordinator needs --workdir", "--mesh=2x4", *SMALL, *flags)


@pytest.mark.parametrize(
    ("meshes", "message"),
    [
        (("2x1", "1x2"), "error: mesh is 1x2 in process 1 and 2x1 in process 0; give all "),
        (("1x2", "1x2"), "error: the plan of C1 is .*'shard': 1.* in process 1 and .*'shard': 0"),
    ],
    ids=["mesh", "plan"],
)
def test_processes_that_differ_are_refused(meshes, message, tmp_path: Path):
    """Started by hand, each in a directory with another plan."""

    def flags_of(index: int) -> Sequence[str]:
        pieces = [piece for name in ("C1", "C2", "C3", "C4") for piece in table_wise(name, index)]
        (tmp_path / str(index) / "plan.json").write_text(Plan(2, tuple(pieces)).to_json())
        return (f"--mesh={meshes[index]}", "--plan=plan.json")

    assert re.match(message, refused_by_hand(tmp_path, flags_of))
