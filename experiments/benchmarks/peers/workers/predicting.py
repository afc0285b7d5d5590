"""A worker that predicts examples with an artifact, and measures itself.

Requests are ``{"do": "build", "artifact": path, "dense": path, "ids": path}``, then any number of:

- ``{"do": "check", "dense": path, "ids": path, "output": path}``, which writes probabilities,
- ``{"do": "run", "size": B, "seconds": …}``: batches one after the other,
- ``{"do": "about"}``, which describes the program,
- ``{"do": "load", "scenario": …, "rows": R, "rate": …, "seconds": …}``: samples of R rows that
  LoadGen asks for.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.peers.workers.load_generator import Asked, LoadGenerator
from experiments.benchmarks.peers.workers.protocol import end_with_parent, only_for_answers

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Probabilities [B] of dense features [B, D] and ids [B, C]."""

_MOST_BATCHES = 4096
_LARGEST = 8192  # rows that a batch of LoadGen's samples may have


def serve(build: Callable[[Path, str], Predict], packages: Sequence[str]) -> None:
    """Answers requests until the input ends; ``--part`` is the second argument of ``build``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", default="")
    parser.add_argument("--loadgen", default="")
    given = parser.parse_args()
    end_with_parent()
    answers = only_for_answers()
    predict: Predict | None = None
    worker: _Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        answer: dict[str, Any] = {}
        if do == "build":
            predict = build(Path(request["artifact"]), given.part)
            dense, ids = (np.load(request[name]) for name in ("dense", "ids"))
            loadgen = Path(given.loadgen) if given.loadgen else None
            worker = _Worker(predict, dense, ids, loadgen)
            answer = {name: importlib.metadata.version(name) for name in packages}
        elif do == "check":
            assert predict is not None
            found = predict(*(np.load(request[name]) for name in ("dense", "ids")))
            np.save(request["output"], found)
        elif do == "about":
            answer = {"parts": getattr(predict, "chosen", {})}
        else:
            answer = getattr(worker, do)(**request)
        print(json.dumps(answer), file=answers, flush=True)


class _Worker:
    def __init__(self, predict: Predict, dense: np.ndarray, ids: np.ndarray, loadgen: Path | None):
        self._predict, self._dense, self._ids, self._loadgen = predict, dense, ids, loadgen

    def run(self, size: int, seconds: float) -> dict[str, float]:
        """Times batches for some seconds, after a fifth of it that doesn't count."""
        count = max(1, min(_MOST_BATCHES, len(self._ids) // size))
        slices = [slice(i * size, (i + 1) * size) for i in range(count)]
        batches = itertools.cycle([(self._dense[x], self._ids[x]) for x in slices])
        end = time.perf_counter() + seconds / 5
        self._predict(*next(batches))
        while time.perf_counter() < end:
            self._predict(*next(batches))
        times = []
        begun = now = time.perf_counter()
        while now < begun + seconds or len(times) < 3:
            self._predict(*next(batches))
            before, now = now, time.perf_counter()
            times.append(now - before)
        return {
            "rate": size * len(times) / (now - begun),
            "p50_ms": 1e3 * float(np.quantile(times, 0.5)),
            "p99_ms": 1e3 * float(np.quantile(times, 0.99)),
        }

    def load(self, scenario: Any, rows: int, rate: float, seconds: float) -> dict[str, Any]:
        """LoadGen's samples; those that wait are a batch."""
        return self._batches(rows).run(scenario, rate, seconds)

    @functools.cache  # noqa: B019 (there is one worker)
    def _batches(self, rows: int) -> LoadGenerator:
        waiting: queue.SimpleQueue[Sequence[Asked]] = queue.SimpleQueue()
        generator = LoadGenerator(waiting.put, len(self._ids) // rows, self._loadgen)
        most = max(1, _LARGEST // rows)

        def work() -> None:
            while True:
                asked = list(waiting.get())
                while not waiting.empty() and len(asked) < most:
                    asked += waiting.get()
                for first in range(0, len(asked), most):
                    some = asked[first : first + most]
                    starts = np.array([x.sample * rows for x in some])
                    own = (starts[:, None] + np.arange(rows)).ravel()
                    self._predict(self._dense[own], self._ids[own])
                    generator.answer([x.query for x in some])

        threading.Thread(target=work, daemon=True).start()
        return generator
