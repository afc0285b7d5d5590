"""Copies of directories whose errors are those of files."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_directory(source: Path, target: Path) -> None:
    """Copies a directory with all that is in it.

    ``shutil.copytree`` goes on after an error and raises a list of texts, so a full disk would look
    like as many errors as there are files.

    Args:
        source: directory.
        target: directory to make.

    Raises:
        OSError: a file can't be read or written; it is the first.
    """
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            copy_directory(path, target / path.name)
        else:
            shutil.copy2(path, target / path.name)
