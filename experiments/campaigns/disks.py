"""Makes disks fail: one error line, the checkpoints whole, and the same bits once it is mended.

    python -m experiments.campaigns.disks --count=3 --minutes=40

A training run or a preparation of logs meets a disk that is full, read-only, broken (EIO) or gone.
It must end with one error line, without a traceback, and with checkpoints that are those of a run
that nothing disturbed; or do without what failed, and end in the same bits. When the disk is in
order again, the same command must end in these bits. It needs Linux and a C compiler. A small disk
is mounted if that is permitted; otherwise the table has no line for it.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns import faults, jobs, shim
from experiments.campaigns.aims import Kind, Target
from experiments.campaigns.bits import bits, differences
from experiments.campaigns.faults import Fault, Try
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

KINDS = [kind for kind in get_args(Kind) if kind != "processes"]

define_tries(3, 40, "of each fault")
flags.DEFINE_enum("only", None, KINDS, "Kind of job whose disk fails, instead of all.")


def main() -> None:
    """All faults of both kinds in turn, in a new directory each time."""
    tally = Tally("disks", FLAGS.seed, FLAGS.minutes)
    with Scratch(tally) as scratch:
        library = shim.build(scratch)
        mountable = faults.can_mount(scratch / "mount")
        plans = []
        for kind in [FLAGS.only] if FLAGS.only else KINDS:
            target = Target.prepare(kind, scratch / kind)
            first = new_try(target, scratch / kind / "counted", library, random.Random(0), 1)
            plans.append(
                (target, every_checkpoint(target), faults.faults(faults.operations(first)))
            )
        for number in tally.rounds(FLAGS.count):
            for target, whole, cases in plans:
                for case, fault in cases.items():
                    if (mountable or case != faults.SMALL_DISK) and tally.has_time():
                        attempt(tally, target, whole, case, fault, number, library)
    tally.finish(chosen_output())


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


def attempt(
    tally: Tally,
    target: Target,
    whole: Mapping[str, str],
    case: str,
    fault: Fault,
    number: int,
    library: Path,
) -> None:
    """One try: a fault, what it leaves, and the run after it; without a loss no files are left.

    ``whole`` has the arrays of `every_checkpoint`.
    """
    chance = tally.chance(f"{target.kind} {case}", number)
    directory = target.job.home.parent / f"{case.replace(' ', '-')}-{number}"
    losses, share = None, 1.0
    while losses is None:  # the disk may not have failed: fewer operations
        trial = new_try(target, directory, library, chance, share)
        if "read" in case.split() or chance.random() < 0.5:  # what is there is read again
            target.kill(trial.made, target.aims[2], chance)
        share /= 2
        with fault(trial) as ended:
            if ended is None:
                continue
            losses = []
            if ended.outcome not in ("done", "error"):
                losses.append(f"{ended}")
            elif ended.outcome == "done":
                losses += target.differences(trial.made)
            if target.kind == "training" and trial.made.exists():
                found = _arrays(bits(trial.made))
                steps = {name.split("/")[1] for name in found}
                expected = {x: y for x, y in whole.items() if x.split("/")[1] in steps}
                losses += [f"a checkpoint: {line}" for line in differences(expected, found)]
            losses += target.losses(trial.made)
    tally.count(f"{target.kind}, {case}", losses)
    if not losses:
        shutil.rmtree(directory)


def _arrays(found: Mapping[str, str]) -> dict[str, str]:
    """The arrays of complete checkpoints."""
    pattern = re.compile(r"checkpoints/[0-9]+/(dense|tables)")
    return {name: value for name, value in found.items() if pattern.match(name)}


if __name__ == "__main__":
    run(main)
