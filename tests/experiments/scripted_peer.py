"""A contestant whose losses are given on its command line; where there are no more, it dies."""

from __future__ import annotations

import os
import sys

from experiments.peers.problem import Problem
from experiments.peers.workers.protocol import serve


class Scripted:
    def __init__(self, problem: Problem):
        del problem
        print("what libraries print is no answer")
        self._losses = iter(sys.argv[1:])

    def step(self, batch: int) -> float:
        del batch
        loss = next(self._losses, None)
        if loss is None:
            print("no memory left", file=sys.stderr, flush=True)
            os._exit(3)
        return float(loss)


if __name__ == "__main__":
    serve(Scripted, ["numpy"])
