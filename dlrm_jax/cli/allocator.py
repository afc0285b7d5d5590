"""Settings of the memory allocator, which a process reads when it starts."""

from __future__ import annotations

import os
import sys

# XLA allocates what a step needs anew each time. As glibc is set otherwise, it gives such memory
# back to the system after some steps, or all, and the system fills it with zeros again: on one CPU
# device a step of `kaggle` with 128 samples and row-wise Adagrad took 3.1 instead of 1.75 ms, one
# with 8192 took 90 instead of 83. And rows are read at random, for which huge pages are better.
# What is larger than the first limit, as large tables are, is still given back when it is freed.
_SETTINGS = {"hugetlb": 1, "mmap_threshold": 2**27, "trim_threshold": 2**28}


def restart_with_settings() -> None:
    """Replaces this process by one whose allocator suits large tables, on Linux.

    What is imported before is imported twice: call it first. A ``GLIBC_TUNABLES`` that is set
    already is left alone.
    """
    # On CPU, XLA reports every hit of the compilation cache at length; read when JAX is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        settings = ":".join(f"glibc.malloc.{key}={value}" for key, value in _SETTINGS.items())
        os.environ["GLIBC_TUNABLES"] = settings
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
