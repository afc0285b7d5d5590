"""The rows of one file as columns on disk, in chunks that are mapped into memory."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.data.formats.parquet import writing
from dlrm_jax.data.preprocessing.sources import Source
from dlrm_jax.data.preprocessing.split_rule import PARTS
from dlrm_jax.files import read_json, replacing, write_json
from dlrm_jax.workspaces import delete

_STAGED = "staged.json"

_log = logging.getLogger(__name__)

# What is raised for the remains of a power cut: files that are empty, cut short or missing.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError)


@dataclasses.dataclass(frozen=True)
class Staged:
    """N rows of one file.

    Attributes:
        directory: directory of the chunks.
        rows: number of rows, N.
        skipped: number of malformed rows that were left out.
        dropped: number of negative examples that were left out.
        content_hash: hash of the file.
        missing: number of rows without a value, by column.
        smallest: smallest number in the dense columns; nulls count as 0.
        parts: number of rows of each split, if each row says what it is for: those for training
            come first, then validation, then test, each in the order of the file; the column
            ``row`` has the row of the file. Empty if rows are in the order of the file.
    """

    directory: Path
    rows: int
    skipped: int
    dropped: int
    content_hash: str
    missing: dict[str, int]
    smallest: float
    parts: Sequence[int] = ()

    @property
    def ranges(self) -> tuple[range, ...]:
        """The rows of each part, or all rows."""
        edges = itertools.accumulate(self.parts or [self.rows], initial=0)
        return tuple(range(*pair) for pair in itertools.pairwise(edges))

    def scan(self) -> pl.LazyFrame:
        """The rows, those of the first part first; see `columns`."""
        return pl.scan_ipc(self.chunks(), glob=False)

    def chunks(self, part: int | None = None) -> list[Path]:
        """The files with the rows, or with those of a part, in order."""
        if part is None or not self.parts:
            return _chunks(self.directory)
        return _chunks(self.directory, f"{part}-")


def stage(source: Source, directory: Path) -> Staged:
    """Parses a file into a directory; finished chunks of the same file stay.

    They are made in order: behind the first that is missing or damaged, all are made again.
    """
    if staged := finished(directory):
        return staged
    number, first, skipped, dropped, kept = 0, 0, 0, 0, True
    for number, (rows, parse) in enumerate(source.chunks()):
        prefixes = [f"{part}-" for part in range(len(PARTS))] if source.row_split else [""]
        paths = [directory / f"{prefix}{number:06d}.arrow" for prefix in prefixes]
        note = directory / f"{number:06d}.json"
        counts = _counts(note, paths, rows) if kept else None
        if not counts:
            if kept:
                _delete_from(directory, number)
            kept = False
            chunk = parse()
            counts = {"skipped": chunk.skipped, "dropped": chunk.dropped}
            write_json(note, counts)
            parts = _parts(chunk.frame, first) if source.row_split else [chunk.frame]
            for path, frame in zip(paths, parts, strict=True):
                with replacing(path) as temporary, writing(path):
                    frame.write_ipc(temporary)
        skipped, dropped = skipped + counts["skipped"], dropped + counts["dropped"]
        first += rows
    _delete_from(directory, number + 1)
    counts = {"skipped": skipped, "dropped": dropped, "content_hash": source.content_hash}
    rows = pl.scan_ipc(_chunks(directory), glob=False)
    fields = _summary(rows) | counts
    if source.row_split:
        fields["parts"] = [_rows(_chunks(directory, f"{part}-")) for part in range(len(PARTS))]
    write_json(directory / _STAGED, fields)
    return Staged(directory, **fields)


def finished(directory: Path) -> Staged | None:
    """What `stage` has finished; None if there is nothing, or it is damaged."""
    done = directory / _STAGED
    if not done.exists():
        return None
    try:
        staged = Staged(directory, **read_json(done))
        if _rows(staged.chunks(), bool(staged.parts)) == staged.rows:
            return staged
    except _DAMAGED:
        pass
    _log.warning("%s is damaged, or a file beside it: it is made again", done)
    return None


def _parts(frame: pl.DataFrame, first: int) -> list[pl.DataFrame]:
    """The rows of each split, numbered in the order of the file from a number on."""
    numbers = pl.Series("row", np.arange(first, first + len(frame)))
    frame = frame.with_columns(numbers)
    return [frame.filter(pl.col("split") == part).drop("split") for part in range(len(PARTS))]


def _counts(note: Path, paths: list[Path], rows: int) -> dict[str, Any] | None:
    """The counts of a finished chunk of so many rows; None if it is damaged or of other rows."""
    try:
        counts = read_json(note)
        left = rows - counts["skipped"] - counts["dropped"]
        return counts if _rows(paths, len(paths) > 1) == left else None
    except _DAMAGED:
        return None


def _delete_from(directory: Path, number: int) -> None:
    """Deletes the chunks from a number on, if there are any."""
    for path in _chunks(directory):
        if int(path.stem.rpartition("-")[2]) < number:
            continue
        _log.warning("%s, its .json or one before is damaged: it is made again", path)
        delete(path)


def _chunks(directory: Path, prefix: str = "") -> list[Path]:
    return sorted(directory.glob(f"{prefix}*.arrow"))  # a part behind the other


def _rows(chunks: list[Path], numbered: bool = False) -> int:
    """The number of rows; where they have numbers, those of earlier versions are damaged."""
    count = pl.col("row").len() if numbered else pl.len()
    return pl.scan_ipc(chunks, glob=False).select(count).collect().item()


def _summary(rows: pl.LazyFrame) -> dict[str, Any]:
    columns = rows.collect_schema().names()
    dense = [name for name in columns if name.startswith("d")]
    features = [name for name in columns if name[0] in "cd"]
    counts = rows.select(
        pl.len().alias("rows"),
        *(pl.col(name).null_count() for name in features),
        *(pl.col(name).min().alias(f"least {name}") for name in dense),
    ).collect(engine="streaming")
    row = counts.row(0, named=True)
    missing = {name: row[name] for name in features}
    least = [row[f"least {name}"] for name in dense]
    if any(missing[name] for name in dense):
        least.append(0)
    present = [value for value in least if value is not None]
    return {"rows": row["rows"], "missing": missing, "smallest": float(min(present, default=0))}
