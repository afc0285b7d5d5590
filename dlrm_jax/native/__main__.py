"""Builds the native kernels: ``python -m dlrm_jax.native``."""

import sys
from typing import NoReturn

from dlrm_jax.signals import end_at_once

end_at_once()  # a signal may come while the imports take their time

from dlrm_jax.console import status  # noqa: E402
from dlrm_jax.errors import UserError  # noqa: E402
from dlrm_jax.native.library import build  # noqa: E402
from dlrm_jax.signals import Interrupted, handled  # noqa: E402

USAGE = "usage: python -m dlrm_jax.native, which builds the native kernels with $CXX or else c++"


def main(arguments: list[str]) -> None:
    """Builds them; arguments other than ``--help`` are refused, so that a typo builds nothing."""
    if {"--help", "-h"} & set(arguments):
        print(USAGE)
        return
    try:
        if arguments:
            raise UserError(f"expected no arguments, got {' '.join(arguments)!r}; {USAGE}")
        with handled():  # a signal raises: the compilers end, and nothing half-made is left
            built = build()
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(
            f"the native kernels can't be built: {error}; set XDG_CACHE_HOME to a directory that "
            f"you can write to",
            2,
        )
    except Interrupted as request:
        _fail(str(request), 128 + request.number)
    status(f"built {built}; CPU runs use it from now on")


def _fail(message: str, code: int) -> NoReturn:
    status(f"error: {message}" if code == 2 else message, error=True)
    sys.exit(code)


main(sys.argv[1:])
