"""What is wrong with the end of a program that was given a changed input."""

from __future__ import annotations

import re
from pathlib import Path

from experiments.campaigns.harness import Ended

MOST_BYTES = 2 << 30
"""Most bytes of memory that a program may use."""


def failure_of(ended: Ended, output: Path) -> str:
    """What is wrong with the end of a program; nothing if nothing is.

    Equal texts are equal failures: they name the exception and the last line of our code.
    """
    if ended.outcome == "done" and ended.peak_bytes <= MOST_BYTES:
        return ""
    if ended.outcome == "error":
        return "an error, and an output all the same" if output.exists() else ""
    frames = re.findall(r'File "[^"]*?((?:dlrm_jax|experiments)/[^"]+)", line (\d+)', ended.stderr)
    if ended.outcome == "hang":  # the innermost call comes first
        frames = frames[:1]
    raised = re.findall(
        r"^([\w.]+(?:Error|Exception|Exit|Interrupt|Warning))\b", ended.stderr, re.M
    )
    where = ":".join(frames[-1]) if frames else "no line of ours"
    return f"{ended.outcome}, code {ended.code}, {raised[-1] if raised else '-'} at {where}"
