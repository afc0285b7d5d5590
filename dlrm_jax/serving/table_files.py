"""The files of tables that are served: whether somebody has written into them since."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dlrm_jax.artifact.manifest import Manifest


class _Stamp(NamedTuple):
    """What changes when a file is written into; a file that takes its place has another number."""

    device: int
    number: int
    bytes: int
    written: int


class TableFiles:
    """The files of a version's tables, noted before they are mapped.

    Requests would be answered with rows of another model, and nothing else would tell.

    Args:
        paths: files.
    """

    def __init__(self, paths: Sequence[Path]):
        self._noted = {path: _stamp(path) for path in paths}

    def changed(self) -> list[Path]:
        """The files that were written into. Those that were replaced or deleted are served on."""
        now = {path: (_stamp(path), noted) for path, noted in self._noted.items()}
        return [
            path for path, (own, noted) in now.items() if own and noted and _is_changed(own, noted)
        ]


def artifact_tables(directory: Path) -> list[Path]:
    """The files of an artifact's tables.

    Raises:
        UserError: there is no artifact, or its manifest is damaged.
    """
    return [directory / table.file for table in Manifest.read(directory).tables]


def _is_changed(now: _Stamp, noted: _Stamp) -> bool:
    return now != noted and now[:2] == noted[:2]


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return _Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
