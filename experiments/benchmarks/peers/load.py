"""Measures the load of the machine by other programs."""

from __future__ import annotations

import os
import time
from pathlib import Path

QUIET = 0.05
"""The largest share of the processor time that other programs may use in a timing."""

_STAT = Path("/proc/stat")

# Seconds of watching whether the machine is quiet: 40 ticks of the clock on two cores.
_LOOK_SECONDS = 0.2


class Load:
    """Measures the load since its construction; unknown outside of Linux."""

    def __init__(self):
        self._begun = time.monotonic()
        self._busy = _busy_seconds()

    def elsewhere(self, own_seconds: float) -> float | None:
        """The share of all cores' time that other programs used; None if unknown.

        ``own_seconds`` is the processor time of the timed processes, since construction.
        """
        if self._busy is None or (busy := _busy_seconds()) is None:
            return None
        available = (time.monotonic() - self._begun) * (os.cpu_count() or 1)
        return max(0.0, busy - self._busy - own_seconds) / available


def wait_for_quiet(limit: float) -> None:
    """Waits until no other program seems to run, at most ``limit`` seconds.

    The timed processes are stopped meanwhile.
    """
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        load = Load()
        time.sleep(_LOOK_SECONDS)
        if (load.elsewhere(own_seconds=0) or 0.0) <= QUIET:
            return


def _busy_seconds() -> float | None:
    """Busy seconds of all cores since the machine's start; time used by its host counts, too."""
    if not _STAT.exists():
        return None
    fields = _STAT.read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, interrupt, soft_interrupt, stolen = map(int, fields[:8])
    ticks = user + nice + system + interrupt + soft_interrupt + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
