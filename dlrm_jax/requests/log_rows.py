"""The rows of a log of requests, chunk by chunk, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64

from dlrm_jax.data.formats import parquet
from dlrm_jax.errors import UserError
from dlrm_jax.requests.column_types import check_types, seconds
from dlrm_jax.requests.columns import Columns

_CHUNK_ROWS = 2048  # with histories of 10,000, 160 MB a column of 64 bits


class LogRows(NamedTuple):
    """Some rows of a log.

    Attributes:
        values: values of each column with ids, those of lists one row after the other.
        lengths: number of tokens of each row.
        counts: number of candidates of each row.
        history_times: time of each token in seconds; None without.
        times: time of each row in seconds; None without.
        labels: label of each candidate.
    """

    values: dict[str, pl.Series]
    lengths: Int64[np.ndarray, " r"]
    counts: Int64[np.ndarray, " r"]
    history_times: Int64[np.ndarray, " t"] | None
    times: Int64[np.ndarray, " r"] | None
    labels: Float32[np.ndarray, " n"]


def rows_of(path: Path, columns: Columns) -> Iterator[LogRows]:
    """Reads a Parquet file in bounded memory.

    Args:
        path: the file.
        columns: columns to read.

    Raises:
        UserError: the file can't be read, lacks a column, or has one of another type, a missing
            value, or lists of different lengths; the message names file, row and column.
    """
    types, first = check_types(path, columns), 0
    wanted = list(types)
    with parquet.reading(str(path)):
        frame = pl.scan_parquet(path, glob=False).select(wanted)
        for chunk in frame.collect_batches(chunk_size=_CHUNK_ROWS, maintain_order=True):
            yield _rows(_Chunk(path, first, chunk), columns)
            first += len(chunk)


def as_seconds(
    times: pl.Series, path: Path, row_of: Callable[[int], int]
) -> Int64[np.ndarray, " n"]:
    """Times as whole seconds.

    Args:
        times: times, of a type that passes `check_times`.
        path: their file, for the message.
        row_of: function that gives the row of each time in the file, from 0, for the message.

    Raises:
        UserError: one is missing, or isn't finite.
    """
    found = times.to_frame().select(seconds(pl.col(times.name), times.dtype)).to_series()
    if found.null_count():
        place = found.is_null().arg_max() or 0
        raise UserError(
            f"{path}, row {row_of(place) + 1}, column {times.name}: expected a time, got "
            f"{times[place]!r}"
        )
    return found.to_numpy()


class _Chunk(NamedTuple):
    """Rows of a file from a number on."""

    path: Path
    first: int
    frame: pl.DataFrame

    def error(self, row: int, column: str, what: str) -> UserError:
        """An error in a row of the chunk."""
        return UserError(f"{self.path}, row {self.first + row + 1}, column {column}: {what}")

    def lengths(self, name: str) -> np.ndarray:
        """The number of values of each row."""
        column = self.frame[name]
        if column.null_count():
            raise self.error(column.is_null().arg_max() or 0, name, self._missing(column))
        if not isinstance(column.dtype, pl.List):
            return np.ones(len(column), np.int64)
        return column.list.len().cast(pl.Int64).to_numpy()

    def flat(self, name: str, lengths: np.ndarray, like: str) -> pl.Series:
        """The values, none of them missing, with as many in each row as another column has."""
        own, column = self.lengths(name), self.frame[name]
        if (own != lengths).any():
            row = int(np.argmax(own != lengths))
            raise self.error(
                row, name, f"expected as many values as {like} has, {lengths[row]}, got {own[row]}"
            )
        if isinstance(column.dtype, pl.List):
            column = column.filter(own > 0).explode()
        known = column.fill_nan(None) if column.dtype.is_float() else column
        if known.null_count():
            place = known.is_null().arg_max() or 0
            what = f"expected a value, got {column[place]!r}; leave it out of all lists"
            raise self.error(row_of(own, place), name, what)
        return column

    def times(self, name: str, lengths: np.ndarray, like: str) -> np.ndarray:
        """Times in seconds, as many in each row as another column has."""
        times = self.flat(name, lengths, like)
        return as_seconds(times, self.path, lambda place: self.first + row_of(lengths, place))

    def _missing(self, column: pl.Series) -> str:
        if isinstance(column.dtype, pl.List):
            return "expected a list, got none; give an empty one for no history"
        return "expected a value, got none"


def _rows(chunk: _Chunk, columns: Columns) -> LogRows:
    seen, shown = next(iter(columns.history)), next(iter(columns.candidates))
    lengths, counts = chunk.lengths(seen), chunk.lengths(shown)
    values = {name: chunk.flat(name, lengths, seen) for name in columns.history}
    values |= {name: chunk.flat(name, counts, shown) for name in columns.candidates}
    values |= {name: chunk.frame[name] for name in columns.context}
    name = columns.label
    labels = chunk.flat(name, counts, shown).cast(pl.Float32, strict=False)
    wrong = ~labels.is_in([0.0, 1.0]).fill_null(False)
    if wrong.any():
        place = wrong.arg_max() or 0
        row = row_of(counts, place)
        given = chunk.flat(name, counts, shown)[place]
        raise chunk.error(row, name, f"expected 0 or 1, got {given!r}")
    timed, at = columns.history_time, columns.time
    history_times = chunk.times(timed, lengths, seen) if timed else None
    times = chunk.times(at, np.ones(len(lengths), np.int64), at) if at else None
    if history_times is not None and times is not None:
        late = history_times > np.repeat(times, lengths)
        if late.any():
            row = row_of(lengths, int(np.argmax(late)))
            what = f"expected actions before the request, got one that is later than its {at}"
            raise chunk.error(row, timed, f"{what}; leave it out: it may tell the label")
    return LogRows(
        values,
        lengths,
        counts,
        history_times,
        times,
        labels.to_numpy(),
    )


def row_of(lengths: np.ndarray, place: int) -> int:
    """The row of a value, where rows have so many."""
    return int(np.searchsorted(np.cumsum(lengths), place, "right"))
