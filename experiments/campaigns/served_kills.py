"""Kills a server while deltas arrive: started again, it must serve the last whole state.

    python -m experiments.campaigns.served_kills --count=20 --minutes=20

SIGKILL ends ``serve --watch`` at a random instant while deltas arrive, in one of two tries also the
new base that they make, and requests are answered. It is started again while the others arrive.
Every answer must be that of the artifact of one state: one that has arrived, not older than the
answer before, and of the second server not older than what had arrived when it was started. In the
end answers must be those of the last state. ``lost`` counts the tries after which one wasn't.
"""

from __future__ import annotations

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns.served_deltas import Target, try_served
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

define_tries(20, 20)


def main() -> None:
    """Both cases in turn, in a new directory each time."""
    output = chosen_output()
    tally = Tally("served_kills", FLAGS.seed, FLAGS.minutes)
    with Scratch(tally) as scratch:
        target = Target.prepare(scratch / "model")
        for number in tally.rounds(FLAGS.count):
            try_served(tally, target, number, scratch / f"{number}")
    tally.finish(output)


if __name__ == "__main__":
    run(main)
