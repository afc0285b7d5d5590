"""Settings of the memory allocator, which a process reads when it starts."""

from __future__ import annotations

import os
import sys

from dlrm_jax.signals import kept_for_child

# XLA allocates the memory of a step anew each time. By default, glibc returns such memory to the
# system, which fills it with zeros again: on one CPU device a step of `kaggle` with 128 samples and
# row-wise Adagrad took 3.1 instead of 1.75 ms, one with 8192 took 90 instead of 83. Huge pages help
# because rows are read at random. Allocations above mmap_threshold, such as large tables, are still
# returned when they are freed. trim_threshold is for the main thread's memory. The memory of other
# threads, in pieces of 64 MiB, is returned but for top_pad: without it, a step of 8 emulated
# devices had up to a thousand page faults, and took up to 5 % longer.
_SETTINGS = {
    "hugetlb": 1,
    "mmap_threshold": 2**27,
    "trim_threshold": 2**28,
    "top_pad": 2**26,
}


def restart_with_settings() -> None:
    """Replaces this process by one whose allocator suits large tables, on Linux.

    A program calls it before its other imports, which the new process repeats. If
    ``GLIBC_TUNABLES`` is set already, nothing happens.
    """
    # Otherwise XLA logs every hit of the compilation cache; read when JAX is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        settings = ":".join(f"glibc.malloc.{key}={value}" for key, value in _SETTINGS.items())
        os.environ["GLIBC_TUNABLES"] = settings
        with kept_for_child():
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
