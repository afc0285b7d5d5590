"""A log of requests, encoded to arrays on disk, which are mapped into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import xxhash

from dlrm_jax.data.formats import parquet
from dlrm_jax.data.formats.npy import ArrayWriter, write_npy
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating
from dlrm_jax.processes import on_process_0
from dlrm_jax.requests.column_types import check_shared, check_types, seconds
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.log_rows import LogRows, as_seconds, rows_of
from dlrm_jax.requests.mapped_log import VOCABULARIES, read_arrays
from dlrm_jax.requests.requests import Requests, Split, cuts_of


class EncodedLog(NamedTuple):
    """A log of requests that was encoded.

    Attributes:
        requests: requests, whose arrays are memory maps.
        split: requests to train on, and to evaluate.
        directory: directory of the arrays and vocabularies.
    """

    requests: Requests
    split: Split
    directory: Path


def read_requests(
    paths: Sequence[Path],
    columns: Columns,
    directory: Path,
    min_count: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> EncodedLog:
    """Reads a log of requests, in bounded memory but for the vocabularies.

    The requests are split by time, or by their order without times. Each table has a vocabulary of
    the values in the requests that are trained on; other values share its row 0. Arrays and
    vocabularies are written once. Those of another log, or of one that has changed, are others:
    a run that reads some keeps them.

    Args:
        paths: Parquet files, with a row for each request.
        columns: columns to read.
        directory: directory of the directories of arrays, one for each log.
        min_count: number of times that a value must occur to have a row of its own.
        say: function that shows a line of text to the user.

    Raises:
        UserError: see `rows_of`; or there are too few requests for a split, a file is there twice,
            or arrays are damaged.
    """
    name = on_process_0(lambda: _encode(paths, columns, directory, min_count, say))
    requests, split = read_arrays(directory / name, columns)
    return EncodedLog(requests, split, directory / name)


def _encode(
    paths: Sequence[Path],
    columns: Columns,
    directory: Path,
    min_count: int,
    say: Callable[[str], None],
) -> str:
    """Writes the arrays, unless they are there; returns the name of their directory."""
    if not paths:
        raise UserError("log: expected at least one Parquet file, got none")
    for path in paths:
        if [x.resolve() for x in paths].count(path.resolve()) > 1:
            raise UserError(f"log: {path} is there twice")
    types = [check_types(path, columns) for path in paths]
    check_shared(paths, types, columns)
    note = json.dumps(_note(paths, columns, min_count))
    name = xxhash.xxh3_64_hexdigest(note.encode())
    if not (directory / name).exists():
        files = "1 file" if len(paths) == 1 else f"{len(paths):,} files"
        say(f"encoding {files} to {directory / name}")
        with creating(directory / name) as made:
            made.mkdir(parents=True)
            _write(paths, types, columns, min_count, made)
    return name


def _note(paths: Sequence[Path], columns: Columns, min_count: int) -> dict[str, Any]:
    """What the arrays depend on, as JSON."""
    stats = [path.stat() for path in paths]
    files = [
        [str(x.resolve()), s.st_size, s.st_mtime_ns] for x, s in zip(paths, stats, strict=True)
    ]
    return {"files": files, "columns": dataclasses.asdict(columns), "min_count": min_count}


def _write(
    paths: Sequence[Path],
    types: Sequence[Mapping[str, Any]],
    columns: Columns,
    min_count: int,
    directory: Path,
) -> None:
    """Writes the vocabularies, and then the arrays row by row."""
    sizes = [_size(path, columns) for path in paths]
    rows, tokens, candidates = np.sum(sizes, axis=0).tolist()
    if not rows:
        raise UserError("expected a log of requests, got one without rows")
    cut, _ = cuts_of(_times(paths, columns, [x for x, *_ in sizes]))
    (directory / VOCABULARIES).mkdir()
    known, starts = {}, np.cumsum([0, *(x for x, *_ in sizes)])
    trained = [
        _trained(path, kinds, columns, cut, int(start))
        for path, kinds, start in zip(paths, types, starts, strict=False)
    ]
    for number, (table, names) in enumerate(columns.tables.items()):
        values = [x.select(value=pl.col(name)) for x in trained for name in names]
        known[table] = vocabulary.learn(values, min_count)
        path = directory / VOCABULARIES / f"{number}.parquet"
        with parquet.writing(path):
            known[table].write_parquet(path)

    with contextlib.ExitStack() as opened:

        def writer(name: str, size: int, dtype: type = np.int32) -> ArrayWriter:
            return opened.enter_context(ArrayWriter(directory / f"{name}.npy", (size,), dtype))

        parts = (
            ("history", columns.history, tokens),
            ("candidates", columns.candidates, candidates),
            ("context", columns.context, rows),
        )
        ids = [
            (column, table, writer(f"{part}.{number}", size))
            for part, tables, size in parts
            for number, (column, table) in enumerate(tables.items())
        ]
        labels = writer("labels", candidates, np.float32)
        history_times = writer("history_times", tokens, np.int64) if columns.is_timed else None
        times = writer("times", rows, np.int64) if columns.time else None
        lengths, counts = [], []
        for path in paths:
            for chunk in rows_of(path, columns):
                for column, table, file in ids:
                    file.append(_encoded(chunk, column, known[table], path))
                labels.append(chunk.labels)
                if history_times and chunk.history_times is not None:
                    history_times.append(chunk.history_times)
                if times and chunk.times is not None:
                    times.append(chunk.times)
                lengths.append(chunk.lengths)
                counts.append(chunk.counts)
    for name, each in (("lengths", lengths), ("counts", counts)):
        write_npy(directory / f"{name}.npy", np.concatenate(each))


def _encoded(chunk: LogRows, column: str, known: pl.DataFrame, path: Path) -> np.ndarray:
    try:
        return vocabulary.encode(chunk.values[column], known, 1)[:, 0]
    except UserError as error:
        raise UserError(f"{path}, column {column}: {error}") from error


def _size(path: Path, columns: Columns) -> tuple[int, int, int]:
    """The number of rows, tokens and candidates of a file."""
    seen, shown = next(iter(columns.history)), next(iter(columns.candidates))
    with parquet.reading(str(path)):
        frame = pl.scan_parquet(path, glob=False)
        is_list = isinstance(frame.collect_schema()[shown], pl.List)
        of_shown = pl.col(shown).list.len().cast(pl.Int64).sum() if is_list else pl.len()
        found = frame.select(
            rows=pl.len(),
            tokens=pl.col(seen).list.len().cast(pl.Int64).sum(),
            candidates=of_shown.cast(pl.Int64),
        ).collect(engine="streaming")
    return found.row(0)


def _times(paths: Sequence[Path], columns: Columns, rows: Sequence[int]) -> np.ndarray:
    """The time of each request, or its number without times."""
    if not columns.time:
        return np.arange(sum(rows))
    found = []
    for path in paths:
        with parquet.reading(str(path)):
            times = pl.scan_parquet(path, glob=False).select(columns.time).collect().to_series()
        found.append(as_seconds(times, path, lambda place: place))
    return np.concatenate(found)


def _trained(
    path: Path, types: Mapping[str, Any], columns: Columns, cut: int, start: int
) -> pl.LazyFrame:
    """The rows of a file that are trained on."""
    frame = pl.scan_parquet(path, glob=False)
    if columns.time:
        return frame.filter(seconds(pl.col(columns.time), types[columns.time]) < cut)
    return frame.head(max(cut - start, 0))
