"""A worker's side of the protocol: lines of JSON, one answer for each request.

Requests are ``{"do": "build", "problem": …}``, then ``{"do": "losses", "steps": N}`` for the
first N batches, then any number of ``{"do": "run", "steps": N}``. At the end of
the input the worker ends.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from experiments.benchmarks.peers.problem import Problem, mean_loss
from experiments.benchmarks.timing import mean_seconds, peak_bytes

_PR_SET_PDEATHSIG = 1

# In the first steps of a turn, caches contain another's data and threads sleep.
_WARM_UP_SECONDS = 0.05


class Contestant(Protocol):
    """Weights and batches in memory, and a step that changes the weights."""

    def step(self, batch: int) -> Any:
        """Trains on a batch and returns its loss before the update, or returns the logits [B].

        It returns when everything is computed.
        """
        ...


def serve(build: Callable[[Problem], Contestant], packages: Sequence[str]) -> None:
    """Answers requests until the input ends, also for the versions of these packages."""
    end_with_parent()
    answers = only_for_answers()
    worker = _Worker(build, packages)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(worker.answer(request)), file=answers, flush=True)


def end_with_parent() -> None:
    """Ends with the parent, if supported: a stopped process doesn't see the end of its input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def only_for_answers() -> TextIO:
    """Takes standard output for answers; libraries print to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


class _Worker:
    def __init__(self, build: Callable[[Problem], Contestant], packages: Sequence[str]):
        self._build = build
        self._packages = packages
        self._problem: Problem
        self._contestant: Contestant
        self._step = 0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request["do"] == "build":
            self._problem = Problem.from_json(request["problem"])
            self._contestant = self._build(self._problem)
            _forget_peak()
            versions = {name: importlib.metadata.version(name) for name in self._packages}
            return {"python": sys.version.split()[0], **versions}
        if request["do"] == "losses":
            assert request["steps"] <= self._problem.batches, request
            return {"losses": [self._loss(i) for i in range(request["steps"])]}
        assert request["do"] == "run", request
        return self._run(request["steps"])

    def _next(self) -> Any:
        result = self._contestant.step(self._step % self._problem.batches)
        self._step += 1
        return result

    def _loss(self, i: int) -> float:
        result = np.asarray(self._next())
        if self._problem.mode == "train":
            return float(result)
        return mean_loss(result, self._problem.batch(i).labels)

    def _run(self, steps: int) -> dict[str, Any]:
        begun_cpu, begun = time.process_time(), time.perf_counter()
        while time.perf_counter() - begun < _WARM_UP_SECONDS:
            self._next()
        seconds = mean_seconds((self._next() for _ in range(steps)), steps)
        cpu_seconds = time.process_time() - begun_cpu
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes()}


def _forget_peak() -> None:
    """Resets the peak, where the system can, to that of the steps: files are mapped before."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
