"""Frames of any number, one after the other, as one Parquet or CSV file, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import polars as pl

_SINKS = {".parquet": pl.LazyFrame.sink_parquet, ".csv": pl.LazyFrame.sink_csv}

SUFFIXES = tuple(_SINKS)
"""The kinds of files that can be written."""


def write_frames(frames: Iterable[pl.DataFrame], path: Path, suffix: str) -> None:
    """Writes all rows to one file.

    Each frame is a file of its own at first, in a directory beside ``path``: polars can't append
    to a Parquet file. They should be some megabytes or more.

    Args:
        frames: of the same columns, at least one.
        path: of the file.
        suffix: which of `SUFFIXES` its content is; a temporary name needn't end in it.

    Raises:
        OSError: it can't be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as directory:
            parts = []
            for number, frame in enumerate(frames):
                parts.append(Path(directory) / f"{number}.parquet")
                frame.write_parquet(parts[-1])
            _SINKS[suffix](pl.scan_parquet(parts, glob=False), path)
    except pl.exceptions.ComputeError as error:  # as polars reports a full disk
        raise OSError(str(error)) from error
