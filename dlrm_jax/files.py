"""Files and directories that are there completely or not at all, and where caches are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlrm_jax.errors import UserError


@contextmanager
def made(path: Path) -> Iterator[Path]:
    """Gives another name to write to, which becomes ``path`` when the block ends without error.

    A file that is there is replaced; only one process may make it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _renamed(path.with_name(f"{path.name}.partial"), path) as temporary:
        yield temporary


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """The same for what a user names: it isn't replaced, and several processes may try.

    Args:
        path: a file or directory that isn't there yet.

    Raises:
        UserError: something is there, or it can't be written; then nothing is left.
    """
    try:
        if path.exists():
            raise UserError(f"{path} exists; remove it, or give another name")
        with _renamed(path.with_name(f".{path.name}.{os.getpid()}.partial"), path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error}; nothing is left of it. Is the directory there and "
            "writable, and the disk large enough?"
        ) from error


@contextmanager
def _renamed(temporary: Path, path: Path) -> Iterator[Path]:
    try:
        yield temporary
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a file in one step."""
    with made(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Writes or replaces a file in one step."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def cache_directory() -> Path:
    """The directory of what can be made again: compiled programs, parsed data, built libraries."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dlrm_jax"
