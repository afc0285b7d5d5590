"""How busy the machine is with other things than what is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

QUIET = 0.05
"""The share of the processor time that may go elsewhere while something is timed."""

_STAT = Path("/proc/stat")

# How long is looked whether the machine is quiet: 40 ticks of the clock on two cores.
_LOOK_SECONDS = 0.2


class Load:
    """Measures from its making on. Where the system doesn't tell, as outside of Linux, nothing."""

    def __init__(self):
        self._begun = time.monotonic()
        self._busy = _busy_seconds()

    def elsewhere(self, own_seconds: float) -> float | None:
        """The share of all cores' time that went elsewhere.

        Args:
            own_seconds: processor time of the processes that are timed, since the beginning.
        """
        if self._busy is None or (busy := _busy_seconds()) is None:
            return None
        available = (time.monotonic() - self._begun) * (os.cpu_count() or 1)
        return max(0.0, busy - self._busy - own_seconds) / available


def wait_for_quiet(limit: float) -> None:
    """Waits until nothing else seems to run, while what is timed is stopped.

    Args:
        limit: seconds after which it's given up.
    """
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        load = Load()
        time.sleep(_LOOK_SECONDS)
        if (load.elsewhere(own_seconds=0) or 0.0) <= QUIET:
            return


def _busy_seconds() -> float | None:
    """Of all cores, since the machine was started; time that its host took counts as well."""
    if not _STAT.exists():
        return None
    fields = _STAT.read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, interrupt, soft_interrupt, stolen = map(int, fields[:8])
    ticks = user + nice + system + interrupt + soft_interrupt + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
