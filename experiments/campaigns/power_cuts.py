"""Cuts the power at random instants: what wasn't flushed to disk is gone before the next run.

    python -m experiments.campaigns.power_cuts --count=50 --minutes=30

A training run or a preparation of logs is killed as in `kills`. A preloaded library has logged what
it flushed; the rest is undone or cut short, see `unflushed`. The same command must then end in the
bits of a run that nothing disturbed, or say in one error line what is lost, which is a case of its
own. It needs Linux and a C compiler.
"""

from __future__ import annotations

from typing import get_args

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns import shim
from experiments.campaigns.aims import Kind, Target
from experiments.campaigns.attempts import try_cut
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

define_tries(50, 30)
KINDS = [kind for kind in get_args(Kind) if kind != "processes"]
flags.DEFINE_enum("only", None, KINDS, "Kind of job that is cut off, instead of all.")


def main() -> None:
    """Both kinds in turn, in a new directory each time."""
    output = chosen_output()
    tally = Tally("power_cuts", FLAGS.seed, FLAGS.minutes)
    with Scratch(tally) as scratch:
        library = shim.build(scratch)
        kinds = [FLAGS.only] if FLAGS.only else KINDS
        targets = [Target.prepare(kind, scratch / kind) for kind in kinds]
        for number in tally.rounds(FLAGS.count):
            for target in targets:
                directory = scratch / target.kind / str(number)
                try_cut(tally, target, number, directory, library)
    tally.finish(output)


if __name__ == "__main__":
    run(main)
