"""Counts the rows of a log without preparing it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import polars as pl

from dlrm_jax.data.formats import parquet
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.sources import Source, is_parquet


def count_rows(path: Path, options: Options, enough: int) -> int:
    """The rows of a log, which aren't checked; counting may end when there are enough.

    Args:
        path: a file as `Source` takes it.
        options: options of the data.
        enough: number of rows above which the result may be too small.

    Raises:
        UserError: the file can't be read, or is empty.
    """
    if options.schema.layout == "named" and is_parquet(path):
        with parquet.reading(str(path)):
            return pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    found = 0
    with contextlib.closing(Source(path, options).chunks()) as chunks:
        for rows, _ in chunks:
            found += rows
            if found >= enough:
                break
    return found
