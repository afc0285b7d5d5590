"""Programs: each is run as ``python -m experiments.NAME``."""

import os
import sys

# Before JAX is imported: on CPU, XLA reports every hit of the compilation cache at length.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# XLA allocates what a step needs anew each time, and tables are read at random: in huge pages
# a step on one CPU device takes a quarter less. glibc reads the setting when a process starts,
# hence the second start. BUILD.md says how to measure it and how to opt out.
if sys.platform == "linux" and sys.argv[0] == "-m" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
