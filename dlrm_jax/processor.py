"""The processor that figures depend on: its name, and its instructions for products."""

from __future__ import annotations

import platform
from pathlib import Path

INSTRUCTION_SETS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8",
)  # fmt: skip
"""The sets that libraries of products choose by, as Linux names them."""


def name() -> str:
    """The name of the processor, or else of its architecture."""
    return _line("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of `INSTRUCTION_SETS` that the processor has; empty outside of Linux."""
    flags = _line("flags").split()
    return [x for x in INSTRUCTION_SETS if x in flags]


def _line(key: str) -> str:
    """A line about the first processor; empty where the system doesn't tell."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        found, _, value = line.partition(":")
        if found.strip() == key:
            return value.strip()
    return ""
