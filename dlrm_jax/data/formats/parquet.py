"""Parquet files that may be damaged, and frames whose disk may be full."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from dlrm_jax.errors import UserError

# Only what writes meets them.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Context in which a Parquet file is read; whatever Polars finds wrong with it is an error.

    Args:
        file: description of the file with its path, for the message.

    Raises:
        UserError: the file can't be read or is damaged.
        OSError: another file is written meanwhile, and its disk is full.
    """
    try:
        yield
    # Polars checks less than all: some damage ends in an assertion of its own.
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        raise UserError(f"cannot read {file}: {error}; is it complete?") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context in which Polars writes a file of any format; its errors are those of other writers.

    Polars' own have no error number, and that of a full disk is one of the format.

    Args:
        path: the file.

    Raises:
        OSError: the file can't be written.
    """
    try:
        yield
    except (OSError, pl.exceptions.ComputeError) as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
