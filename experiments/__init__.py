"""Programs: each is run as ``python -m experiments.NAME``."""

import os

# Before JAX is imported: on CPU, XLA reports every hit of the compilation cache at length.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
