"""Programs: each is run as ``python -m experiments.NAME``."""

import os
import sys

# Before JAX is imported: on CPU, XLA reports every hit of the compilation cache at length.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# XLA allocates what a step needs anew each time. As glibc is set otherwise, it gives such memory
# back to the system after some steps, or all, and the system fills it with zeros again: on one CPU
# device a step of `kaggle` with 128 samples and row-wise Adagrad took 3.1 instead of 1.75 ms, one
# with 8192 took 90 instead of 83. And rows are read at random, for which huge pages are better.
# What is larger than the first limit, as large tables are, is still given back when it is freed.
# glibc reads its settings when a process starts, hence the second start. BUILD.md says how to
# measure it and how to opt out.
_ALLOCATOR = {"hugetlb": 1, "mmap_threshold": 2**27, "trim_threshold": 2**28}

if sys.platform == "linux" and sys.argv[0] == "-m" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{k}={v}" for k, v in _ALLOCATOR.items())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
