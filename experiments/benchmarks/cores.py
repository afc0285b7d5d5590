"""Measures the latency between two cores of the machine.

The cores of a step share data that they write. In a virtual machine the latency may change from
minute to minute, presumably as the host moves the cores to or from a common cache: two cores of an
EPYC (Zen 5) needed 0.15 µs, and a step of `kaggle` with 8192 samples and row-wise Adagrad 65 ms in
`experiments.benchmarks.peers`, then 0.38 µs and 81 ms.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_ROOT = Path(__file__).parents[2]

_REPEATS, _TRIPS = 8, 500

# Limit after which both processes end, whatever else the machine does.
_SECONDS = 5


def round_trip_us() -> float | None:
    """Microseconds for a byte from the first core to the last and back, between two Python loops.

    The least mean of eight times 500 trips, which take less time than starting Python. None if it
    can't be measured: there is only one core, processes can't be bound to cores here, or the cores
    are so busy that it took five seconds.
    """
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        return None
    # In a separate program, as a program with threads, such as JAX's, shouldn't fork.
    program = [sys.executable, "-m", __name__]
    found = subprocess.run(program, cwd=_ROOT, capture_output=True, text=True, check=False)
    return float(found.stdout) if found.returncode == 0 else None


def extremes(round_trips: Iterable[float | None]) -> dict[str, float] | None:
    """The ``"min"`` and ``"max"`` of the known values; None if none is known."""
    known = [trip for trip in round_trips if trip is not None]
    return {"min": min(known), "max": max(known)} if known else None


def _measure() -> float:
    first, *_, last = sorted(os.sched_getaffinity(0))
    byte = mmap.mmap(-1, 1)
    child = os.fork()
    signal.alarm(_SECONDS)
    os.sched_setaffinity(0, {first if child else last})
    if not child:
        for _ in range(_REPEATS * _TRIPS):
            while byte[0] == 0:
                pass
            byte[0] = 0
        os._exit(0)
    seconds = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        for _ in range(_TRIPS):
            byte[0] = 1
            while byte[0] == 1:
                pass
        seconds.append((time.perf_counter() - begun) / _TRIPS)
    os.waitpid(child, 0)
    return 1e6 * min(seconds)


if __name__ == "__main__":
    print(_measure())
