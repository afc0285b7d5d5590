"""Single tries of the campaigns: what is done to a job, the run after it, and what is lost."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from experiments.campaigns import harness, jobs
from experiments.campaigns.aims import Aim, Target
from experiments.campaigns.bits import bits, differences
from experiments.campaigns.faults import Fault, Try
from experiments.campaigns.tally import Tally
from experiments.campaigns.unflushed import Disk

_TRIES = 20

Hit = TypeVar("Hit")


def _until_hit(shoot: Callable[[], Hit | None]) -> Hit:
    """The first result that isn't None: a program may end before it is hit."""
    for _ in range(_TRIES):
        hit = shoot()
        if hit is not None:
            return hit
    raise RuntimeError(f"the program ended before it was hit, {_TRIES} times")


def try_kill(tally: Tally, target: Target, number: int, directory: Path) -> None:
    """Kills, the run that ends, the comparison; without a loss no files are left."""
    chance = tally.chance(target.kind, number)
    aim = target.aims[number % len(target.aims)]
    made = directory / "made"

    def from_the_beginning() -> list[str] | None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return _kill(target, made, aim, chance)

    losses = _until_hit(from_the_beginning)
    if chance.random() < 1 / 3:
        losses += _kill(target, made, aim, chance) or []
    losses += target.losses(made)
    tally.count(f"{target.kind}, {aim.case}", losses)
    if not losses:
        shutil.rmtree(directory)


def _kill(target: Target, made: Path, aim: Aim, chance: random.Random) -> list[str] | None:
    """Kills a job; what is wrong with its end. None if it ended before."""
    if target.kind != "processes":
        return None if target.kill(made, aim, chance) is None else []
    ended = target.kill(made, aim, chance, shoot=lambda program: _shoot_one(program, chance))
    # The other process must notice, and end without a traceback.
    wrong = ended and ended.outcome in ("traceback", "hang", "memory")
    return [f"the other process: {ended}"] if wrong else ended and []


def _shoot_one(program: harness.Program, chance: random.Random) -> None:
    """Kills one of the processes that a program has started, or itself if there is none yet."""
    os.kill(chance.choice(program.children() or [program.pid]), signal.SIGKILL)


def try_cut(tally: Tally, target: Target, number: int, directory: Path, library: Path) -> None:
    """A power cut, the run after it, the comparison; without a loss no files are left."""
    chance = tally.chance(target.kind, number)
    aim = target.aims[number % len(target.aims)]
    made = directory / "disk" / "made"

    def killed_on_disk() -> Disk | None:
        shutil.rmtree(directory, ignore_errors=True)
        made.parent.mkdir(parents=True)
        disk = Disk(made.parent, directory / "aside", library)
        return disk if target.kill(made, aim, chance, disk.variables) else None

    disk = _until_hit(killed_on_disk)
    (directory / "gone").write_text("\n".join(disk.cut(chance)))
    ended = target.job.run(made)
    case = f"{target.kind}, {aim.case}"
    losses = []
    if ended.outcome == "error":
        case += ": an error says what is lost"
        print(f"{case}: {ended.errors[0]}")
    elif ended.outcome != "done":
        losses = [f"the run after it: {ended}"]
    else:
        losses = target.differences(made)
    tally.count(case, losses)
    if not losses:
        shutil.rmtree(directory)


def new_try(
    target: Target, directory: Path, library: Path, chance: random.Random, share: float
) -> Try:
    """A try in an empty directory."""
    shutil.rmtree(directory, ignore_errors=True)
    disk, aside = directory / "disk", directory / "aside"
    for path in (disk, aside):
        path.mkdir(parents=True)
    return Try(target, disk, aside, library, chance, share)


def every_checkpoint(target: Target) -> Mapping[str, str]:
    """The arrays of all checkpoints of an unbroken run, also those that it wouldn't keep."""
    if target.kind == "preparation":
        return {}
    job = jobs.training(target.job.home.parent, "--mesh=1x2", "--keep_checkpoints=100")
    return _arrays(job.unbroken(target.job.home.parent / "all-kept")[0])


def try_fault(
    tally: Tally,
    target: Target,
    whole: Mapping[str, str],
    case: str,
    fault: Fault,
    number: int,
    library: Path,
) -> None:
    """A fault, what it leaves, the run after it; without a loss no files are left.

    ``whole`` has the arrays of `every_checkpoint`.
    """
    chance = tally.chance(f"{target.kind} {case}", number)
    directory = target.job.home.parent / f"{case.replace(' ', '-')}-{number}"
    shares = (2.0**-i for i in itertools.count())  # of the operations, the first of which are hit

    def on_failing_disk() -> list[str] | None:
        trial = new_try(target, directory, library, chance, next(shares))
        if "read" in case.split() or chance.random() < 0.5:  # what is there is read again
            target.kill(trial.made, target.aims[2], chance)
        with fault(trial) as ended:
            if ended is None:
                return None
            losses = [] if ended.outcome in ("done", "error") else [f"{ended}"]
            if ended.outcome == "done":
                losses += target.differences(trial.made)
            if target.kind == "training" and trial.made.exists():
                found = _arrays(bits(trial.made))
                steps = {name.split("/")[1] for name in found}
                expected = {x: y for x, y in whole.items() if x.split("/")[1] in steps}
                losses += [f"a checkpoint: {line}" for line in differences(expected, found)]
            return losses + target.losses(trial.made)

    losses = _until_hit(on_failing_disk)
    tally.count(f"{target.kind}, {case}", losses)
    if not losses:
        shutil.rmtree(directory)


def _arrays(found: Mapping[str, str]) -> dict[str, str]:
    """The arrays of complete checkpoints."""
    pattern = re.compile(r"checkpoints/[0-9]+/(dense|tables)")
    return {name: value for name, value in found.items() if pattern.match(name)}
