"""The number of threads of native calls that are made outside of XLA."""

from __future__ import annotations

import os

from dlrm_jax.errors import UserError, shown

_MOST = 1024  # a call takes 64 bits, and each of its threads needs memory of its own


def processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_threads(threads: int | None) -> int:
    """The number of threads that a native call may use, 1 to 1024.

    Args:
        threads: most threads that the caller allows; None for one on each processor.

    Raises:
        UserError: there are none.
    """
    if threads is None:
        return processors()
    if threads < 1:
        raise UserError(f"threads: expected 1 or more, got {shown(threads)}")
    return min(int(threads), _MOST)
