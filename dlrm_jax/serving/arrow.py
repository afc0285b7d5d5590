"""Rows of an Arrow stream."""

from __future__ import annotations

import io
from collections.abc import Sequence

import polars as pl

from dlrm_jax.errors import UserError


def read_arrow(body: bytes, columns: Sequence[str]) -> pl.DataFrame:
    """Reads the columns of an Arrow IPC stream.

    Args:
        body: the stream.
        columns: columns to read; others are ignored.

    Raises:
        UserError: it is no stream, or a column is missing.
    """
    try:
        frame = pl.read_ipc_stream(io.BytesIO(body))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise UserError(f"expected an Arrow IPC stream: {error}") from error
    if missing := [x for x in columns if x not in frame.columns]:
        raise UserError(
            f"column {missing[0]!r} is missing; there are {', '.join(frame.columns) or 'none'}"
        )
    return frame.select(columns)
