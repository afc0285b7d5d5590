"""Times of steps: in rounds, in which what is compared runs in turn and so sees the same machine.

Workers of peers, in whose environment there is no JAX, import it as well.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from dlrm_jax.signals import check

T = TypeVar("T")


def mean_seconds(steps: Iterator[Any], count: int) -> float:
    """Seconds of a step, the mean of the next ``count``, each of which runs when it is asked for.

    A step returns when all is computed, or steps keep a fixed number in flight.
    """
    begun = time.perf_counter()
    for _ in itertools.islice(steps, count):
        pass
    return (time.perf_counter() - begun) / count


def fastest_seconds(run: Callable[[], Any], tries: int = 7) -> float:
    """Seconds of the fastest of several runs; the first one, which compiles, doesn't count."""
    run()
    runs = (run() for _ in range(tries))
    return min(mean_seconds(runs, 1) for _ in range(tries))


def in_turn(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Results of each run, round by round: one after the other in each round.

    Warm up before, with a round that doesn't count or with as many steps as there are batches.
    """
    results: dict[str, list[T]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            check()
            results[name].append(run())
    return results


def ratio_quartiles(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of a / b, taken round by round."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    if len(ratios) == 1:
        ratios *= 2
    lower, median, upper = statistics.quantiles(ratios, method="inclusive")
    return lower, median, upper
