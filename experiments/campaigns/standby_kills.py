"""Kills a run on a stream that a standby waits beside: it must go on with the same bits.

    python -m experiments.campaigns.standby_kills --count=50 --minutes=60

SIGKILL or SIGTERM ends ``train --stream`` at a random instant while segments come, with checkpoints
alone or with a journal. The standby must take over and end in the arrays and metrics of a run that
nothing disturbed. In one of three tries it is killed, too, and the same command is run once more.
``lost`` counts the tries after which something differed.
"""

from __future__ import annotations

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns.standbys import Target, try_standby
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

define_tries(50, 60)


def main() -> None:
    """All cases in turn, in a new directory each time."""
    output = chosen_output()
    tally = Tally("standby_kills", FLAGS.seed, FLAGS.minutes)
    with Scratch(tally) as scratch:
        target = Target.prepare(scratch)
        for number in tally.rounds(FLAGS.count):
            try_standby(tally, target, number, scratch / f"{number}")
    tally.finish(output)


if __name__ == "__main__":
    run(main)
