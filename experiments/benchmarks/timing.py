"""Times of steps, in rounds in which what is compared runs in turn; and the peak of memory.

Workers of peers, in whose environment there is no JAX, import it as well.
"""

from __future__ import annotations

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
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


def calls_per_second(
    calls: Sequence[Callable[[], Any]], seconds: float, processor_time: bool = False
) -> float:
    """Calls a second, one after the other again and again for about so many seconds.

    The first ones, for a fifth of the time, don't count. ``processor_time`` counts seconds in which
    the process computes, on any of its threads.
    """
    clock = time.process_time if processor_time else time.perf_counter
    steps = (call() for call in itertools.cycle(calls))
    begun = clock()
    count = 0
    while clock() - begun < seconds / 5:
        next(steps)
        count += 1
    begun = clock()
    for _ in itertools.islice(steps, 4 * count):
        pass
    return 4 * count / (clock() - begun)


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


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, extremes and spread of the rounds."""
    milliseconds = [1e3 * value for value in seconds]
    median = statistics.median(milliseconds)
    low, _, high = statistics.quantiles(milliseconds) if len(milliseconds) > 1 else [median] * 3
    return {
        "median_ms": median,
        "min_ms": min(milliseconds),
        "max_ms": max(milliseconds),
        "spread": (high - low) / median,
    }


def peak_bytes() -> int:
    """The largest resident memory of this process."""
    if sys.platform == "linux":  # where it can be reset
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def ratio_quartiles(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of a / b, taken round by round."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    if len(ratios) == 1:
        ratios *= 2
    lower, median, upper = statistics.quantiles(ratios, method="inclusive")
    return lower, median, upper
