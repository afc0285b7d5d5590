"""Starts two programs on the same files: one wins, the other waits or is told; no bit is wrong.

    python -m experiments.campaigns.two_at_once --count=5 --minutes=30

The second one starts at a random time of the first. Each must end by itself, or with one error line
without a traceback. What a program that ends by itself has made must be the bits of one that was
alone, and nothing else may be left beside it.
"""

from __future__ import annotations

import shutil

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns.pairs import CASES, Scene
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

define_tries(5, 30, "of each case")
flags.DEFINE_enum("only", None, list(CASES), "Case that is tried, instead of all.")


def main() -> None:
    """All cases in turn, in a new directory each time."""
    output = chosen_output()
    tally = Tally("two_at_once", FLAGS.seed, FLAGS.minutes)
    with Scratch(tally) as scratch:
        scene = Scene(scratch)
        for number in tally.rounds(FLAGS.count):
            for case in [FLAGS.only] if FLAGS.only else CASES:
                directory = scratch / f"{list(CASES).index(case)}-{number}"
                directory.mkdir()
                losses = CASES[case](scene, directory, tally.chance(case, number))
                tally.count(case, losses)
                if not losses:
                    shutil.rmtree(directory)
    tally.finish(output)


if __name__ == "__main__":
    run(main)
