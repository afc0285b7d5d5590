"""Expressions over few rows, one after the other: threads cost more than they save.

To wake a thread takes as long as an expression over a row, and milliseconds where all processors
are busy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl

_FEW = 1000


def select(frame: pl.DataFrame, exprs: Iterable[Any]) -> pl.DataFrame:
    """As `DataFrame.select`."""
    return frame.select_seq(exprs) if len(frame) < _FEW else frame.select(exprs)


def with_columns(frame: pl.DataFrame, exprs: Iterable[Any]) -> pl.DataFrame:
    """As `DataFrame.with_columns`."""
    return frame.with_columns_seq(exprs) if len(frame) < _FEW else frame.with_columns(exprs)
