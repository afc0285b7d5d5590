"""Files that can't grow, as on a full disk."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Context in which this process writes no file of more bytes.

    JAX keeps no program that it compiles meanwhile: a torn entry would stay in its cache for good.
    """
    seconds = float(jax.config.jax_persistent_cache_min_compile_time_secs)  # pyright: ignore
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
