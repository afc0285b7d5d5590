"""The metadata of one checkpoint, and whether all its files are there; see `checkpoint`."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.artifact.manifest import is_artifact
from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.training.metadata_parts import invalid_parts

FORMAT = 3

FORMATS: Mapping[int, Mapping[str, str]] = {2: {"table": "weights"}, FORMAT: {}}
"""Formats that can be read, each with its old names of arrays."""

_FILE = "metadata.json"

_HASHED = 1 << 20
"""Most bytes of a file that is hashed: Orbax's descriptions. Arrays have checksums of their own."""


def write_metadata(checkpoint: Path, metadata: Mapping[str, Any]) -> None:
    """Writes the metadata beside the arrays, which must be complete, with what tells damage later.

    That is the size of each file, and the hash of each small one.

    Raises:
        UserError: it isn't JSON, or `read_metadata` wouldn't take a part, such as validation
            metrics that aren't numbers. Nothing is written.
    """
    files = {
        str(path.relative_to(checkpoint)): _size(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    hashes = {name: _hash(checkpoint / name) for name, size in files.items() if size <= _HASHED}
    try:
        whole = {"format": FORMAT, **metadata, "files": files, "hashes": hashes}
        text = json.dumps(whole, indent=1, default=_number)
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot save the checkpoint: its metadata isn't JSON: {error}") from error
    content = json.loads(text)
    if invalid := invalid_parts(content):
        found = ", ".join(f"{name} {json.dumps(content.get(name))[:100]}" for name in invalid)
        raise UserError(
            f"cannot save the checkpoint: its metadata can't hold the {found}; validation metrics "
            f"must be numbers by name, or None"
        )
    (checkpoint / _FILE).write_text(text, encoding="utf-8")


def _number(value: Any) -> Any:
    """The number that a NumPy or JAX scalar is."""
    if getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} is no number, text, list or dict")


def read_metadata(checkpoint: Path, strict: bool = True) -> dict[str, Any]:
    """The metadata of one checkpoint. All its files are there and as long as they were.

    Args:
        checkpoint: directory of the checkpoint.
        strict: whether a small file that can't be read just now, to compare its hash, is an error;
            otherwise it is taken for unchanged.

    Raises:
        UserError: there is no checkpoint, one of another format, or one that the file system
            doesn't let read.
        DamagedCheckpointError: the metadata can't be parsed, or a file is missing, truncated or
            changed.
    """
    try:
        return _read(checkpoint, strict)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {checkpoint}: {error}") from error


def files_of_others(checkpoint: Path, metadata: Mapping[str, Any]) -> list[str]:
    """Names of files and links in a checkpoint that aren't part of it.

    Args:
        checkpoint: directory of the checkpoint.
        metadata: result of `read_metadata`.
    """
    if "files" in metadata:
        own = {_FILE, *metadata["files"]}
        entries = (path for path in checkpoint.rglob("*") if path.is_symlink() or not path.is_dir())
    else:  # earlier versions noted none
        own, entries = {_FILE, "dense", "tables"}, checkpoint.iterdir()
    return sorted({str(path.relative_to(checkpoint)) for path in entries} - own)


def status(path: Path) -> os.stat_result | None:
    """The status of a file or directory; None if it isn't there.

    `Path.exists` and its like also answer no when the file system can't tell: for some errors, or
    for all of them from Python 3.14 on.

    Raises:
        OSError: the file system can't tell.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(checkpoint: Path, strict: bool) -> dict[str, Any]:
    damaged = functools.partial(DamagedCheckpointError, str(checkpoint))
    try:
        text = (checkpoint / _FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        there = f"it has no {_FILE}" if status(checkpoint) else "there is no such directory"
        if is_artifact(checkpoint):
            there = "it is an artifact; give the run that it was exported from"
        raise _unreadable(checkpoint, there) from error
    try:
        metadata = json.loads(text)
        found = metadata["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"its {_FILE} can't be read ({error})"
        if b'"made_from"' in text:
            reason = "it is a directory of prepared data"
        raise _unreadable(checkpoint, reason) from error
    if found not in tuple(FORMATS):  # damaged, it may be of a type that has no hash
        raise UserError(
            f"checkpoint {checkpoint} has format {found}, this program reads "
            f"{' and '.join(map(str, FORMATS))}"
        )
    if invalid := invalid_parts(metadata):
        raise damaged(f"its {_FILE} has no {' and no '.join(invalid)}")
    if checkpoint.name.isdecimal() and int(checkpoint.name) != metadata["step"]:
        raise UserError(
            f"checkpoint {checkpoint} is of step {metadata['step']}; give it the name of its step, "
            f"or move it out of the run's checkpoints"
        )
    for name, size in metadata.get("files", {}).items():  # earlier versions noted none
        if "\0" in name or (found := status(checkpoint / name)) is None:
            raise damaged(f"it has no {name}")
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            raise damaged(f"{name} has {found.st_size:,} of {size:,} bytes")
        expected = metadata.get("hashes", {}).get(name)  # earlier versions noted none
        if expected is not None and not _has_hash(checkpoint / name, expected, strict):
            raise damaged(f"{name} has been changed")
    return metadata


def _unreadable(path: Path, reason: str) -> UserError:
    """The error about a damaged checkpoint, or about a path that never was one."""
    if path.name.isdecimal() and path.is_dir():
        return DamagedCheckpointError(str(path), reason)
    return UserError(f"{path} is not a checkpoint: {reason}{_checkpoints_in(path)}")


def _size(path: Path) -> int:
    with path.open("rb") as file:  # opened, so that NFS asks for what other machines have written
        return file.seek(0, 2)


def _hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _has_hash(path: Path, expected: str, strict: bool) -> bool:
    try:
        return _hash(path) == expected
    except OSError:
        if strict:
            raise
        return True


def _checkpoints_in(path: Path) -> str:
    """A hint for users who give a run, or its checkpoints, instead of a checkpoint."""
    for directory in (path / "checkpoints", path):
        if directory.is_dir():
            found = sorted(str(x) for x in directory.iterdir() if x.name.isdecimal())
            if found:
                return f"; it has the checkpoints {', '.join(found)}"
    return ""
