"""The rows of one file as columns on disk, in chunks that are mapped into memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import polars as pl

from dlrm_jax.data.preprocessing.sources import Source
from dlrm_jax.files import replacing, write_json


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
    """

    directory: Path
    rows: int
    skipped: int
    dropped: int
    content_hash: str
    missing: dict[str, int]
    smallest: float

    def scan(self) -> pl.LazyFrame:
        """The rows in the order of the file; see `columns`."""
        return pl.scan_ipc(self.chunks(), glob=False)

    def chunks(self) -> list[Path]:
        """The files with the rows, in order."""
        return sorted(self.directory.glob("*.arrow"))


def stage(source: Source, directory: Path) -> Staged:
    """Parses a file into a directory; finished chunks of the same file stay."""
    done = directory / "staged.json"
    if not done.exists():
        paths, skipped, dropped = [], 0, 0
        for number, parse in enumerate(source.chunks()):
            paths.append(directory / f"{number:06d}.arrow")
            counted = paths[-1].with_suffix(".json")
            if not paths[-1].exists():
                chunk = parse()
                write_json(counted, {"skipped": chunk.skipped, "dropped": chunk.dropped})
                with replacing(paths[-1]) as temporary:
                    chunk.frame.write_ipc(temporary)
            counts = json.loads(counted.read_text())
            skipped, dropped = skipped + counts["skipped"], dropped + counts["dropped"]
        summary = _summary(pl.scan_ipc(paths, glob=False))
        counts = {"skipped": skipped, "dropped": dropped, "content_hash": source.content_hash}
        write_json(done, summary | counts)
    return Staged(directory, **json.loads(done.read_text()))


def _summary(rows: pl.LazyFrame) -> dict[str, object]:
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
