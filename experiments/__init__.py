"""The experiments of the DLRM paper; each is run as ``python -m experiments.NAME``."""

import sys

if sys.argv[0] == "-m":  # Python is about to run one of them, and hasn't imported JAX yet
    from dlrm_jax.cli.main import begin

    begin()
