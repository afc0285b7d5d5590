"""The cache of compiled programs, which a torn entry doesn't spoil for good."""

from __future__ import annotations

import errno
import glob
import os
import re
import warnings
from pathlib import Path
from typing import Any

import jax

from dlrm_jax.console import status
from dlrm_jax.processes import is_process_0

_UNREADABLE = re.compile(
    r"Error reading persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL
)


def keep_compiled(directory: Path) -> None:
    """Keeps compiled programs in a directory, where that can be; otherwise a note says so."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))
    except OSError as error:  # JAX would warn at each program
        if is_process_0():
            status(
                f"note: compiled programs aren't kept for the next run: {error}; set "
                f"XDG_CACHE_HOME to a directory that you can write to",
                error=True,
            )
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    _replace_unreadable(directory)


def _replace_unreadable(directory: Path) -> None:
    """Has entries written anew that can't be read.

    JAX writes an entry in place, so a kill or a full disk leaves a part of it. It warns of that
    entry in each later run, and never replaces one that is there.
    """
    show = warnings.showwarning

    def shown(message: Warning | str, *place: Any, **options: Any) -> None:
        found = _UNREADABLE.fullmatch(str(message))
        if not found:
            show(message, *place, **options)
            return
        program, reason = found.groups()
        # The warning is between the reading and the writing. It doesn't say which of the entries of
        # that name it is about; the others are compiled once more, too.
        for path in directory.glob(f"{glob.escape(program)}-*-cache"):
            path.unlink(missing_ok=True)
        text = f"note: the compiled {program} that was kept is damaged, and made anew: {reason}"
        status(text, error=True)

    warnings.showwarning = shown
