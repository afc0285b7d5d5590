"""Kills a run that publishes, at random instants: what is published must stay whole.

    python -m experiments.campaigns.published_kills --count=50 --minutes=60

SIGKILL ends ``train --publish`` at any time, or soon after it has begun a base or a delta, and in
one of three tries once more. Each time the newest base and all its deltas must be readable, and of
no earlier step than before. The same command is run to its end. Then base and deltas must have the
bytes of an export of the last checkpoint. ``lost`` counts the tries after which something differed.
"""

from __future__ import annotations

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns.publications import Target, try_published
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

define_tries(50, 60)


def main() -> None:
    """All instants in turn, in a new directory each time."""
    output = chosen_output()
    tally = Tally("published_kills", FLAGS.seed, FLAGS.minutes)
    with Scratch(tally) as scratch:
        target = Target.prepare(scratch)
        for number in tally.rounds(FLAGS.count):
            try_published(tally, target, number, scratch / f"{number}")
    tally.finish(output)


if __name__ == "__main__":
    run(main)
