"""Writes any number of frames to one Parquet or CSV file, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from dlrm_jax.files import scratch_directory

_SINKS = {".parquet": pl.LazyFrame.sink_parquet, ".csv": pl.LazyFrame.sink_csv}

SUFFIXES = tuple(_SINKS)
"""Suffixes of the supported formats."""


def write_frames(frames: Iterable[pl.DataFrame], path: Path, suffix: str) -> None:
    """Writes the rows of all frames to one file.

    Each frame is first a file of its own, in a directory beside ``path``, as polars can't append to
    a Parquet file. Frames should have some megabytes or more.

    Args:
        frames: frames with the same columns, at least one.
        path: the file.
        suffix: format of the file, one of `SUFFIXES`; its name needn't end in it.

    Raises:
        OSError: the file can't be written.
    """
    try:
        with scratch_directory(path) as directory:
            paths = []
            for number, frame in enumerate(frames):
                paths.append(directory / f"{number}.parquet")
                frame.write_parquet(paths[-1])
            _SINKS[suffix](pl.scan_parquet(paths, glob=False), path)
    except pl.exceptions.ComputeError as error:  # polars' error for a full disk
        raise OSError(str(error)) from error
