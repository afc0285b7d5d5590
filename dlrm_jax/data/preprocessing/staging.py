"""The rows of one file as columns on disk, in parts that are mapped into memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import polars as pl

from dlrm_jax.data.preprocessing.files import made, write_json
from dlrm_jax.data.preprocessing.sources import Source


@dataclasses.dataclass(frozen=True)
class Staged:
    """N rows of one file.

    Attributes:
        directory: of the parts.
        rows: N.
        skipped: malformed lines that were left out.
        content_hash: of the file.
    """

    directory: Path
    rows: int
    skipped: int
    content_hash: str

    def scan(self) -> pl.LazyFrame:
        """The rows, in the order of the file; see `sources` for the columns."""
        return _scan(self.directory)


def stage(source: Source, directory: Path) -> Staged:
    """Parses a file into a directory; what is there already of the same file stays."""
    done = directory / "staged.json"
    if not done.exists():
        for number, parse in enumerate(source.parts()):
            part = directory / f"{number:06d}.arrow"
            if not part.exists():
                with made(part) as temporary:
                    parse().write_ipc(temporary)
        rows = _scan(directory).select(pl.len()).collect().item()
        content = source.content_hash()
        write_json(done, {"rows": rows, "skipped": source.rows - rows, "content_hash": content})
    return Staged(directory, **json.loads(done.read_text()))


def _scan(directory: Path) -> pl.LazyFrame:
    return pl.scan_ipc(sorted(directory.glob("*.arrow")), glob=False)
