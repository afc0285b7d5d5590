"""Runs a program: its help, its errors as messages, its exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, logging

from dlrm_jax.cli.flags import FLAGS, named_as_flag, parse
from dlrm_jax.cli.help import help_text
from dlrm_jax.cli.launch import ANOTHER_LOST
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.host_exchange import LostProcessError
from dlrm_jax.processes import is_distributed, is_process_0
from dlrm_jax.signals import Interrupted, end_at_once, handled

# What a disk answers that is full, limited or broken. All other errors of files name the file.
_BAD_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# Words in the errors of collectives and of JAX's coordinator when another process has gone.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "heartbeat")


def run(main: Callable[[], None], argv: Sequence[str] | None = None) -> None:
    """Runs a program: exit code 2 and one message for what the user can mend, no traceback.

    The docstring of the module of ``main`` is the program's help.
    """

    def parsed(argv: Sequence[str]) -> list[str]:
        if {"--help", "-h", "--helpfull"} & set(argv[1:]):
            full = "--helpfull" in argv  # with the flags of libraries
            docstring = sys.modules[main.__module__].__doc__ or ""
            print(FLAGS.get_help() if full else help_text(docstring))
            sys.stdout.flush()
            sys.exit()
        return parse(argv)

    def started(argv: Sequence[str]) -> None:
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax logs every file
        if len(argv) > 1:
            raise UserError(f"expected flags only, got {' '.join(argv[1:])!r}; see --help")
        with handled():  # a signal raises: half-written files are removed
            main()
        sys.stdout.flush()

    _make_printable()
    end_at_once()  # as `main.begin` does, if this program is no command
    try:
        app.run(started, list(argv or sys.argv), flags_parser=parsed)
    except UserError as error:
        _fail(named_as_flag(str(error)))
    except BrokenPipeError:  # the reader of the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(128 + signal.SIGPIPE)
    except OSError as error:
        if error.filename is None and error.errno not in _BAD_DISK:
            raise
        _fail(str(error))
    except MemoryError as error:
        _fail(f"there is too little memory: {error or 'no details'}; make batches or data smaller")
    except Interrupted as request:
        if is_process_0():
            saved = "; everything is saved; run the same command with this workdir to resume"
            status(f"{request}{saved if request.saved else ''}", error=True)
        if request.saved:  # in all processes
            sys.exit(128 + request.number)
        _end(128 + request.number)
    except SystemExit as request:
        _end(request.code)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            _fail(
                f"a device has too little memory: {str(error).splitlines()[0]}; make batches, "
                f"layers or tables smaller, or use more devices"
            )
        if not is_distributed():
            raise
        _fail_among_others(error)


def _make_printable() -> None:
    """Makes all text printable, if nobody reads it or the stream's encoding lacks letters, too."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the program began
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # what was a file when Python began is a pipe now
                stream.reconfigure(errors="backslashreplace")


def _fail(message: str, code: int = 2) -> NoReturn:
    status(f"error: {message}", error=True)
    _end(code)


def _fail_among_others(error: Exception) -> NoReturn:
    """One of several processes can't go on, because of itself or because of another one."""
    # JAX also raises ValueError for errors of gloo.
    lost = isinstance(error, RuntimeError | ValueError) and any(x in str(error) for x in _LOST)
    if lost or isinstance(error, LostProcessError):
        _fail(
            f"{ANOTHER_LOST}; if it has ended, its own error says why: "
            f"{str(error).splitlines()[0]}. Run all again with this workdir to resume from the "
            f"last checkpoint",
            code=1,
        )
    traceback.print_exception(error)
    _end(1)


def _end(code: int | str | None) -> NoReturn:
    """Ends the program; one of several processes at once, so that the others notice."""
    if is_distributed() and isinstance(code, int):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # otherwise it would wait at its exit for the others, who wait for it
    sys.exit(code)
