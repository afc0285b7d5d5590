"""Memory that a process keeps although nothing is in it."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_memory() -> None:
    """Returns free memory to the system; call it before and after moving large arrays.

    Orbax leaves arrays in reference cycles. And glibc keeps memory that XLA's compiler has freed;
    without a compilation cache, the peak of `experiments.benchmarks.step` would include it.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # other C libraries don't have it
            trim(0)
