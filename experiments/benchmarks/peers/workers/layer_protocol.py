"""The side of a worker that computes one layer, for `benchmarks.hstu_layer`.

Requests are ``{"do": "build", "problem": directory}``, then ``{"do": "results", "output": path}``,
which writes arrays by name, and any number of ``{"do": "run", "steps": N}``.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from experiments.benchmarks.hstu_problem import Case, read
from experiments.benchmarks.peers.workers.protocol import end_with_parent, only_for_answers
from experiments.benchmarks.timing import mean_seconds


class Layer(Protocol):
    """A layer with its parameters and its batch in memory."""

    def step(self) -> Any:
        """Computes all results, and returns when they are there."""
        ...

    def results(self) -> dict[str, np.ndarray]:
        """What a step computes: ``out``, or the gradients by the names of the parameters."""
        ...


def serve(build: Callable[[Case, dict[str, np.ndarray]], Layer], packages: Sequence[str]) -> None:
    """Answers requests until the input ends, also for the versions of these packages."""
    end_with_parent()
    answers = only_for_answers()

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    layer = build(*read(Path(json.loads(sys.stdin.readline())["problem"])))
    answer(**{name: importlib.metadata.version(name) for name in packages})
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "results":
            np.savez(request["output"], **layer.results())  # pyright: ignore[reportArgumentType]
            answer()
            continue
        layer.step()  # the caches have another's data, and threads sleep
        begun = time.process_time()
        seconds = mean_seconds((layer.step() for _ in range(request["steps"])), request["steps"])
        answer(seconds=seconds, cpu_seconds=time.process_time() - begun)
