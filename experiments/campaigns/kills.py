"""Kills programs at random instants; run again, they must end in the bits of an unbroken run.

    python -m experiments.campaigns.kills --count=50 --minutes=30

SIGKILL ends a training run, a preparation of logs, or one of two processes of a run, at any time or
soon after it has made a certain file. The same command is run again until it ends: in one of three
tries it is killed once more. All arrays and metrics must then be those of a run that nothing
disturbed, and nothing else may be left. ``lost`` counts the tries after which something differed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import get_args

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns import harness
from experiments.campaigns.aims import Aim, Kind, Target
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

define_tries(50, 30, "of training and of preparation; of two processes, two fifths as many")
flags.DEFINE_enum("only", None, get_args(Kind), "Kind of job that is killed, instead of all.")


def main() -> None:
    """All kinds in turn, in a new directory each time."""
    tally = Tally("kills", FLAGS.seed, FLAGS.minutes)
    with Scratch(tally) as scratch:
        kinds = [FLAGS.only] if FLAGS.only else get_args(Kind)
        targets = [Target.prepare(kind, scratch / kind) for kind in kinds]
        for number in tally.rounds(FLAGS.count):
            for target in targets:
                if target.kind != "processes" or number % 5 in (0, 2):
                    directory = scratch / target.kind / str(number)
                    directory.mkdir()
                    attempt(tally, target, number, directory)
    tally.finish(chosen_output())


def attempt(tally: Tally, target: Target, number: int, directory: Path) -> None:
    """One try: kills, the run that ends, the comparison. If nothing is lost, no files are left."""
    chance = tally.chance(target.kind, number)
    aim = target.aims[number % len(target.aims)]
    made = directory / "made"
    losses = kill(target, made, aim, chance)
    while losses is None:  # it ended before: from the beginning, to another instant
        shutil.rmtree(directory)
        directory.mkdir()
        losses = kill(target, made, aim, chance)
    if chance.random() < 1 / 3:
        losses += kill(target, made, aim, chance) or []
    losses += target.losses(made)
    tally.count(f"{target.kind}, {aim.case}", losses)
    if not losses:
        shutil.rmtree(directory)


def kill(target: Target, made: Path, aim: Aim, chance: random.Random) -> list[str] | None:
    """Kills a job; what is wrong with its end. None if it ended before."""
    if target.kind != "processes":
        return None if target.kill(made, aim, chance) is None else []
    ended = target.kill(made, aim, chance, shoot=lambda program: shoot_one(program, chance))
    # The other process must notice, and end without a traceback.
    wrong = ended and ended.outcome in ("traceback", "hang", "memory")
    return [f"the other process: {ended}"] if wrong else ended and []


def shoot_one(program: harness.Program, chance: random.Random) -> None:
    """Kills one of the processes that a program has started, or itself if there is none yet."""
    os.kill(chance.choice(program.children() or [program.pid]), signal.SIGKILL)


if __name__ == "__main__":
    run(main)
