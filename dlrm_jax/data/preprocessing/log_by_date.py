"""Cuts one log in the order of time into a file for each date."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from dlrm_jax.data.formats import parquet
from dlrm_jax.data.memory import content_hash
from dlrm_jax.data.preprocessing import logs
from dlrm_jax.data.preprocessing.log_times import as_times, has_seconds
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.sources import CHUNK_ROWS, is_parquet
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating, read_json, write_json

_NOTE = "log.json"


def by_date(log: Path, schema: Schema, directory: Path) -> list[Path]:
    """Writes the rows of each date (UTC) to ``DIRECTORY/DATE.parquet``, with all their columns.

    If the directory is there already, made from a log of the same content, nothing is done.

    Args:
        log: a Parquet file, in the order of time.
        schema: schema of the log, with a timestamp.
        directory: directory to make.

    Returns:
        The files, in the order of time.

    Raises:
        UserError: it isn't such a log, the directory was made from another one, or what is in it
            is damaged; it can't be written.
    """
    if not schema.timestamp or not is_parquet(log):
        raise UserError(
            f"{log}: expected a Parquet file with a timestamp in the schema, which is cut into "
            f"dates, or several files; give a file for each day"
        )
    note = {"log": log.name, "bytes": log.stat().st_size, "hash": content_hash(log)}
    if directory.exists():
        return _there(directory, note)
    names = []
    with creating(directory) as temporary, parquet.reading(str(log)):
        logs.check_columns(log, schema, pl.read_parquet_schema(log))
        temporary.mkdir()
        for date, first, count in _ranges(log, schema.timestamp):
            rows = pl.scan_parquet(log, glob=False).slice(first, count)
            names.append(f"{date}.parquet")
            with parquet.writing(directory / names[-1]):
                rows.sink_parquet(temporary / names[-1])
        write_json(temporary / _NOTE, note | {"files": names})
    return [directory / name for name in names]


def _there(directory: Path, note: dict[str, Any]) -> list[Path]:
    """The files that were cut from this log; others in the directory are a user's."""
    try:
        found = read_json(directory / _NOTE)
        if not found.keys() >= {*note, "files"}:
            raise ValueError("it lacks a part")
        names = found["files"]
        dates = [datetime.date.fromisoformat(name.removesuffix(".parquet")) for name in names]
        if [f"{date}.parquet" for date in dates] != names:
            raise ValueError("its files aren't named by dates")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{directory / _NOTE} is damaged, or isn't of days that this program cut: {error}; "
            f"give another workdir"
        ) from error
    if any(found[key] != note[key] for key in ("bytes", "hash")):
        raise UserError(
            f"{directory} is of the log {found['log']} of {found['bytes']} bytes, got "
            f"{note['log']} of {note['bytes']} bytes with other content; give another workdir, or "
            f"a file for each day: further ones may be added"
        )
    for name in names:
        if not (directory / name).exists():
            raise UserError(
                f"{directory} lacks {name}; put it back, or delete {directory}: the log is cut "
                f"again"
            )
    return [directory / name for name in names]


def _ranges(log: Path, timestamp: str) -> list[tuple[datetime.date, int, int]]:
    """Date, first row and number of rows of each date.

    Raises:
        UserError: a row has no time, or a date comes back.
    """
    found: list[tuple[datetime.date, int, int]] = []
    for date, first, count in _runs(log, timestamp):
        if found and date == found[-1][0]:
            found[-1] = (date, found[-1][1], found[-1][2] + count)
        elif found and date < found[-1][0]:
            raise UserError(
                f"{log}, row {first + 1}: its date {date} is before that of the row before, "
                f"{found[-1][0]}; sort the log by time"
            )
        else:
            found.append((date, first, count))
    return found


def _runs(log: Path, timestamp: str) -> Iterator[tuple[datetime.date, int, int]]:
    """Date, first row and number of rows of each run of rows of one date, chunk by chunk."""
    first, seconds = 0, None
    frame = pl.scan_parquet(log, glob=False).select(timestamp)
    for chunk in frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True):
        given = chunk[timestamp]
        if seconds is None:
            seconds = has_seconds(log, given, first + 1)
        times = as_times(given, bool(seconds))
        if times.null_count():
            row = times.is_null().arg_max() or 0
            raise UserError(
                f"{log}, row {first + row + 1}, column {timestamp}: expected a date, a time, or "
                f"seconds since 1970, got {given[row]!r}"
            )
        for date, count in times.dt.date().rle().struct.unnest().select("value", "len").rows():
            yield date, first, count
            first += count
