"""Builds the native kernels: ``python -m dlrm_jax.native``."""

import sys

from dlrm_jax.errors import UserError
from dlrm_jax.native.library import build

try:
    print(f"built {build()}; CPU runs use it from now on")
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
