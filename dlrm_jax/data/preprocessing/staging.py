"""The rows of one file as columns on disk, in parts that are mapped into memory."""

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
        directory: directory of the parts.
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
        return _scan(self.directory)

    def parts(self) -> list[Path]:
        """The files with the rows, in order."""
        return _parts(self.directory)


def stage(source: Source, directory: Path) -> Staged:
    """Parses a file into a directory; finished parts of the same file stay.

    Args:
        source: the file.
        directory: directory for the parts.
    """
    done = directory / "staged.json"
    if not done.exists():
        counts = []
        for number, parse in enumerate(source.parts()):
            path = directory / f"{number:06d}.arrow"
            counted = path.with_suffix(".json")
            if not path.exists():
                part = parse()
                write_json(counted, {"skipped": part.skipped, "dropped": part.dropped})
                with replacing(path) as temporary:
                    part.frame.write_ipc(temporary)
            counts.append(json.loads(counted.read_text()))
        write_json(
            done,
            {
                **_summary(_scan(directory)),
                **{key: sum(count[key] for count in counts) for key in ("skipped", "dropped")},
                "content_hash": source.content_hash(),
            },
        )
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


def _scan(directory: Path) -> pl.LazyFrame:
    return pl.scan_ipc(_parts(directory), glob=False)


def _parts(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.arrow"))
