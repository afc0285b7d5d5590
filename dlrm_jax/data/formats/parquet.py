"""Parquet files that may be damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl

from dlrm_jax.errors import UserError


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Context in which a Parquet file is read; whatever Polars finds wrong with it is an error.

    Args:
        file: description of the file with its path, for the message.

    Raises:
        UserError: the file can't be read or is damaged.
    """
    try:
        yield
    # Polars checks less than all: some damage ends in an assertion of its own.
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"cannot read {file}: {error}; is it complete?") from error
