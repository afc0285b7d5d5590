"""Atomic, durable writes of files and directories, and the cache directory.

What is written appears under its name completely or not at all, and survives a crash of the
machine: its files and directories are flushed to disk before the rename, its parent after it.
Nothing is deleted that this program can't prove to be its own; see `workspaces`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlrm_jax.errors import UserError
from dlrm_jax.workspaces import MARKER, flush, sweep, workspace


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context that writes or replaces a file or directory in one step.

    If its body raises, ``path`` stays as it was. Only one process may write a path at a time.

    Args:
        path: the file or directory; its parents are made.

    Yields:
        The temporary path to write to. It doesn't exist yet.

    Raises:
        UserError: see `workspace`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with workspace(path) as directory:
        yield directory / path.name
        move_into_place(directory / path.name, path)


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """Context that writes a new file or directory in one step and replaces nothing.

    It is for paths that users name, which several processes may write.

    Args:
        path: the file or directory; its parents are made.

    Yields:
        The temporary path to write to. It doesn't exist yet.

    Raises:
        UserError: the path exists or can't be written. Then nothing is left of it.
    """
    try:
        _check_absent(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f"{path.name}.")
        with workspace(path, f".{secrets.token_hex(4)}") as directory:
            yield directory / path.name
            move_to_new(directory / path.name, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error}; nothing is left of it. Check that its directory is "
            f"writable, and that the disk is large enough"
        ) from error


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Context of an empty directory beside a path. Whatever ends the context deletes it.

    Unlike `tempfile.TemporaryDirectory`, it is also deleted if a signal comes while it is made.
    """
    sweep(path.parent, f"{path.name}.")
    with workspace(path, f".{secrets.token_hex(4)}.scratch") as directory:
        empty = directory / "scratch"
        empty.mkdir()
        yield empty


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise UserError(f"{path} exists; remove it, or give another name")


def _rename_to_new(written: Path, path: Path) -> None:
    """Renames a file or directory unless another process has been faster."""
    _check_absent(path)
    if written.is_dir():
        try:
            written.rename(path)
        except OSError:  # maybe that there is something else by now
            _check_absent(path)
            raise
        return
    try:
        os.link(written, path)
    except FileExistsError:
        _check_absent(path)
        os.link(written, path)  # the other file is gone again
    except OSError:  # a file system without links
        written.rename(path)


def move_to_new(written: Path, path: Path) -> None:
    """Flushes a file or directory to disk and renames it; it replaces nothing.

    Args:
        written: the file or directory, complete, on the file system of ``path``.
        path: the new name.

    Raises:
        UserError: something has this name.
        OSError: it can't be renamed.
    """
    flush_all(written)
    flush(path.parent)  # what can't be done fails before the name is there
    _rename_to_new(written, path)
    flush(path.parent)


def move_into_place(
    written: Path, path: Path, check: Callable[[Path], None] = lambda old: None
) -> None:
    """Flushes a file or directory to disk and renames it.

    Args:
        written: the file or directory, complete, on the file system of ``path``.
        path: the new name. A file replaces a file. A directory replaces a directory, which is moved
            to a `workspace` and deleted afterwards, so that arrays mapped from it stay valid.
        check: function of the directory to be replaced, when it has been moved out of every other
            program's way. If it raises, the directory is put back.

    Raises:
        IsADirectoryError: a file would replace a directory.
        OSError: it can't be renamed. The old directory is back, or the message says where it is.
    """
    flush_all(written)
    if written.is_dir() and path.is_dir():
        with workspace(path, ".replaced") as directory:
            replaced = directory / path.name
            try:
                path.rename(replaced)
                check(replaced)
                written.rename(path)
            except BaseException as error:
                if written.exists() and replaced.exists():
                    _put_back(replaced, path, error)
                raise
    else:
        written.replace(path)
        if path.is_dir():
            sweep(path.parent, f"{path.name}.")  # of a process killed between two renames
    flush(path.parent)


def _put_back(replaced: Path, path: Path, cause: BaseException) -> None:
    """Moves a directory out of a workspace. If that fails, it stays there for good."""
    try:
        replaced.rename(path)  # fails if another process has made files there
    except OSError as error:
        (replaced.parent / MARKER).unlink()  # without it nothing deletes the workspace
        raise OSError(
            f"cannot replace {path}: {cause!r}, nor put it back: {error}; its old content is "
            f"{replaced} now, move it where it belongs"
        ) from cause


def flush_all(written: Path) -> None:
    """Flushes a file, or a directory with all that is in it."""
    for entry in reversed([written, *written.rglob("*")]):
        flush(entry)


def delete_directory(directory: Path) -> None:
    """Deletes a directory that must not be seen half-deleted, if it exists.

    It is moved to a `workspace` first; so is what an interrupted call has left.
    """
    with workspace(directory, ".deleted") as doomed:
        if directory.exists():
            directory.rename(doomed / directory.name)


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file in one step; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes or replaces a JSON file in one step; see `replacing`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path, **options: Any) -> Any:
    """Reads a JSON file; the options are those of `json.loads`.

    Raises:
        OSError: the file can't be read.
        ValueError: it isn't JSON, or JSON of too many levels.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), **options)
    except RecursionError as error:
        raise ValueError("it has too many levels") from error


def as_path(name: str, given: Any) -> Path:
    """A path that a function of the package is given.

    Args:
        name: name of the argument, for the message.
        given: the path. An empty one would be the current directory.

    Raises:
        UserError: it is empty or no path.
    """
    if isinstance(given, str | os.PathLike) and given != "":
        return Path(given)
    found = "an empty one" if given == "" else repr(given)
    raise UserError(f"{name}: expected a path, got {found}")


def cache_directory() -> Path:
    """The directory for files that can be made again: compiled programs, data, libraries."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))  # its specification ignores relative ones
    return (home if home.is_absolute() else Path.home() / ".cache") / "dlrm_jax"
