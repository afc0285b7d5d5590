"""Serves for a long time, under load, while versions replace each other and clients misbehave.

    python -m experiments.campaigns.soak --minutes=10
    python -m experiments.campaigns.soak --minutes=1 --swap_seconds=5

A server runs as its own process. Its peak is measured, then good requests come at a share of it, at
the times of a Poisson process: raw rows, and the Open Inference Protocol as JSON and in binary.
Every answer must be 200 with the known probabilities of one version, the one that it names. In the
meantime, versions replace each other, damaged ones are refused, ``--count`` bodies are malformed, a
client stalls and others disconnect. At the end, the server's own memory must be what it was after
the first quarter of the time, to 5 % and 8 MiB, its log without a traceback, and its end clean. In
that quarter, ten versions replace each other: so long does the server's memory grow.
"""

from __future__ import annotations

import sys

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from experiments.campaigns.served_versions import make_artifacts
from experiments.campaigns.soak_server import Soak
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

define_tries(1000, 10, "of malformed bodies")
flags.DEFINE_float("load", 0.7, "Share of the peak that good requests are; such as 0.5.", 0.01)
flags.DEFINE_float("swap_seconds", 30, "Seconds between two versions; such as 5.", 0.1)


def main() -> None:
    """Makes two artifacts, and serves them."""
    output = chosen_output()
    tally = Tally("soak", FLAGS.seed, FLAGS.minutes)
    with Scratch(tally) as scratch:
        artifacts = make_artifacts(scratch / "model")
        soak = Soak(tally, artifacts, scratch, FLAGS.count, FLAGS.load, FLAGS.swap_seconds)
        for _ in tally.rounds(1):
            soak.run(60 * FLAGS.minutes)
        print(*soak.notes, sep="\n", file=sys.stderr)
    tally.finish(output)


if __name__ == "__main__":
    run(main)
