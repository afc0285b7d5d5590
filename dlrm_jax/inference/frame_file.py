"""Writes any number of frames to one Parquet or CSV file, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from dlrm_jax.data.formats.parquet import writing
from dlrm_jax.files import scratch_directory

_SINKS = {".parquet": pl.LazyFrame.sink_parquet, ".csv": pl.LazyFrame.sink_csv}

_BYTES = 1 << 25
_NOT_IN_CSV = (pl.List, pl.Array, pl.Struct, pl.Object, pl.Binary, pl.Duration)

SUFFIXES = tuple(_SINKS)
"""Suffixes of the supported formats."""


def write_frames(frames: Iterable[pl.DataFrame], path: Path, suffix: str) -> None:
    """Writes the rows of all frames to one file.

    Some megabytes at a time are first a file of their own, in a directory beside ``path``, as
    polars can't append to a Parquet file.

    Args:
        frames: frames with the same columns, at least one.
        path: the file.
        suffix: format of the file, one of `SUFFIXES`; its name needn't end in it.

    Raises:
        OSError: the file can't be written.
    """
    with writing(path), scratch_directory(path) as directory:
        paths = []
        for number, frame in enumerate(_joined(frames)):
            paths.append(directory / f"{number}.parquet")
            frame.write_parquet(paths[-1])
        _SINKS[suffix](pl.scan_parquet(paths, glob=False), path)


def unwritable(types: Mapping[str, Any], suffix: str) -> str | None:
    """The first column with values that a file of this format can't have; None if there is none."""
    found = [name for name, kind in types.items() if isinstance(kind, _NOT_IN_CSV)]
    return found[0] if found and suffix == ".csv" else None


def _joined(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in frames that are large enough for a file."""
    pending: list[pl.DataFrame] = []
    size = 0
    for frame in frames:
        pending.append(frame)
        size += frame.estimated_size()
        if size >= _BYTES:
            yield pl.concat(pending)
            pending, size = [], 0
    if pending:
        yield pl.concat(pending)
