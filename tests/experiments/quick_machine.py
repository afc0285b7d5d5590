"""Programs that measure the machine in a moment: less work, and no waiting for other programs."""

from __future__ import annotations

_QUICK = """
import runpy
from experiments.benchmarks import cores, roofline
cores.round_trip_us = lambda: 0.5
from experiments.benchmarks.peers import match
from experiments.characterize import measure
match.wait_for_quiet = lambda limit: None
roofline.SIDE, roofline._TABLE_BYTES, roofline._IDS = 256, 2**22, 2**14
measure._STREAM_BYTES = 2**22
"""


def quickly(module: str, before: str = "") -> tuple[str, str]:
    """The program of a module for `main_job.run`, after this code."""
    return "-c", f"{_QUICK}{before}runpy.run_module({module!r}, None, '__main__', True)"
