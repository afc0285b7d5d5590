"""Builds the native kernels: ``python -m dlrm_jax.native``."""

import sys

from dlrm_jax.errors import UserError
from dlrm_jax.native.library import build

USAGE = "usage: python -m dlrm_jax.native, which builds the native kernels with $CXX or else c++"


def main(arguments: list[str]) -> None:
    """Builds them; arguments other than ``--help`` are refused, so that a typo builds nothing."""
    if {"--help", "-h"} & set(arguments):
        print(USAGE)
        return
    try:
        if arguments:
            raise UserError(f"expected no arguments, got {' '.join(arguments)!r}; {USAGE}")
        print(f"built {build()}; CPU runs use it from now on")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


main(sys.argv[1:])
