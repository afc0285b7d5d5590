"""Kills programs at random instants; run again, they must end in the bits of an unbroken run.

    python -m experiments.campaigns.kills --count=50 --minutes=30

SIGKILL ends a training run on data, without or with a journal, or on a stream, a preparation of
logs, or one of two processes of a run, at any time or soon after it has made a certain file. The
same command is run again until it ends: in one of three tries it is killed once more. All arrays
and metrics must then be those of a run that nothing disturbed, and nothing else may be left.
``lost`` counts the tries after which something differed.
"""

from __future__ import annotations

from typing import get_args

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns.aims import Kind, Target
from experiments.campaigns.attempts import try_kill
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

define_tries(50, 30, "of training and of preparation; of two processes, two fifths as many")
flags.DEFINE_enum("only", None, get_args(Kind), "Kind of job that is killed, instead of all.")


def main() -> None:
    """All kinds in turn, in a new directory each time."""
    output = chosen_output()
    tally = Tally("kills", FLAGS.seed, FLAGS.minutes)
    with Scratch(tally) as scratch:
        kinds = [FLAGS.only] if FLAGS.only else get_args(Kind)
        targets = [Target.prepare(kind, scratch / kind) for kind in kinds]
        for number in tally.rounds(FLAGS.count):
            for target in targets:
                if target.kind != "processes" or number % 5 in (0, 2):
                    directory = scratch / target.kind / str(number)
                    directory.mkdir()
                    try_kill(tally, target, number, directory)
    tally.finish(output)


if __name__ == "__main__":
    run(main)
