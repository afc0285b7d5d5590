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
from typing import get_args

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns import faults, shim
from experiments.campaigns.aims import Kind, Target
from experiments.campaigns.attempts import every_checkpoint, new_try, try_fault
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

KINDS = [kind for kind in get_args(Kind) if kind != "processes"]

define_tries(3, 40, "of each fault")
flags.DEFINE_enum("only", None, KINDS, "Kind of job whose disk fails, instead of all.")


def main() -> None:
    """All faults of both kinds in turn, in a new directory each time."""
    output = chosen_output()
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
                        try_fault(tally, target, whole, case, fault, number, library)
    tally.finish(output)


if __name__ == "__main__":
    run(main)
