"""Checks of the files and directories that a program writes, before the work that they are for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.errors import UserError


def check_new(*names: str) -> None:
    """Refuses outputs that couldn't be written at the end of a long run: files or directories.

    Flags without a value pass.
    """
    seen: dict[Path, str] = {}
    for name in names:
        if not (given := FLAGS[name].value):
            continue
        path = Path(given)
        if (other := seen.setdefault(path.absolute(), name)) != name:
            raise UserError(f"--{name}: {path} is the file of --{other}, too; give another name")
        if os.path.lexists(path):  # also a link to what isn't there
            raise UserError(f"--{name}: {path} exists; remove it, or give another name")
        _check_parents(name, path)


def check_writable(*names: str) -> None:
    """As `check_new`, of files, which may be there and are replaced."""
    for name in names:
        if not (given := FLAGS[name].value):
            continue
        path = Path(given)
        if path.is_dir():
            raise UserError(
                f"--{name}: expected a file, got the directory {path}; give another name"
            )
        _check_parents(name, path)


def _check_parents(name: str, path: Path) -> None:
    """Checks that a file or a directory can be made, if its parents are."""
    try:
        parent = next(x for x in path.parents if x.exists())
    except OSError as error:  # such as a directory's name that is too long
        raise UserError(
            f"--{name}: expected a file that can be made, got {path}: {error.strerror}; give "
            f"another name"
        ) from error
    if not parent.is_dir():
        raise UserError(
            f"--{name}: expected a file in a directory, got {path}, where {parent} is a file; give "
            f"another name"
        )
    try:
        # Root may write everywhere, and yet no file can be made in /proc.
        with tempfile.NamedTemporaryFile(dir=parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UserError(
            f"--{name}: expected a directory that you can write to, got {path} in {parent}: "
            f"{error.strerror}; give another name"
        ) from error


def check_pictures(*names: str) -> None:
    """Refuses pictures named neither .png nor .svg; flags without a value pass."""
    for name in names:
        path: str | None = FLAGS[name].value
        if path and Path(path).suffix not in (".png", ".svg"):
            raise UserError(f"--{name}: expected a file named .png or .svg, got '{path}'")
