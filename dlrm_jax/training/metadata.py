"""The metadata of one checkpoint, and whether all its files are there; see `checkpoint`."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import jax.numpy as jnp
import numpy as np

from dlrm_jax.artifact.manifest import is_artifact
from dlrm_jax.errors import DamagedCheckpointError, UserError

FORMAT = 3

FORMATS: Mapping[int, Mapping[str, str]] = {2: {"table": "weights"}, FORMAT: {}}
"""Formats that can be read, each with its old names of arrays."""

_FILE = "metadata.json"

_HASHED = 1 << 20
"""Most bytes of a file that is hashed: Orbax's descriptions. Arrays have checksums of their own."""

_CHECKSUM = re.compile(r"(\w+) [0-9a-f]{16}")
"""Dtype and checksum of an array."""


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
    if invalid := _invalid(content):
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
    if invalid := _invalid(metadata):
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


def _has_all(kind: type | UnionType) -> Callable[[Any], bool]:
    """A check that a value is a dict whose values are of a kind."""
    return lambda value: (
        isinstance(value, dict) and all(isinstance(each, kind) for each in value.values())
    )


def _are_arrays(value: Any) -> bool:
    # An item is a number: a path would lead elsewhere.
    return _has_all(dict)(value) and all(
        isinstance(item := each.get("item"), str)
        and item.isdecimal()
        and _is_shape(each.get("shape"))
        for each in value.values()
    )


def _is_start(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("source"), str)
        and isinstance(names := value.get("names"), list)
        and all(isinstance(name, str) for name in names)
    )


def _is_continuation(value: Any) -> bool:
    return (
        _has_all(object)(value)
        and value.keys() - {"factor"} == {"source", "checkpoint", "step", "cuts", "before"}
        and _is_share(value.get("factor", 1))  # earlier versions noted none
        and all(isinstance(value[x], str) for x in ("source", "checkpoint"))
        and all(type(value[x]) is int and 0 <= value[x] < 2**31 for x in ("step", "cuts"))
        and _has_all(dict)(value["before"])
        and all(_has_all(int | float | None)(each) for each in value["before"].values())
    )


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(type(size) is int and size >= 0 for size in value)
        and math.prod(value) < 2**48  # far more than any memory holds
    )


def _is_improvement(value: Any) -> bool:
    counts = ("since_best", "since_cut", "cuts")
    return (
        _has_all(object)(value)
        and value.keys() - {"factor"} == {"metric", "best", *counts}
        and _is_share(value.get("factor", 1))  # earlier versions noted none
        and isinstance(value["metric"], str)
        and isinstance(value["best"], float | int | None)
        and all(type(value[x]) is int and 0 <= value[x] < 2**31 for x in counts)
    )


def _is_speed(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_checksums(value: Any) -> bool:
    if not _has_all(str)(value):
        return False
    found = [_CHECKSUM.fullmatch(text) for text in value.values()]
    return all(each and _is_dtype(each[1]) for each in found)


def _is_share(value: Any) -> bool:
    return isinstance(value, float | int) and 0 < value <= 1


def _is_dtype(name: str) -> bool:
    try:
        dtype = np.dtype(name)
    except TypeError:
        return False
    return dtype == np.bool or jnp.issubdtype(dtype, jnp.number)


# Parts of the metadata, and what they must be; `...` is a part that isn't there.
_PARTS: Mapping[str, Callable[[Any], bool]] = {
    "step": lambda value: isinstance(value, int),
    "identity": _has_all(object),
    "validation": lambda value: value is None or _has_all(int | float | None)(value),
    "improvement": lambda value: value is ... or _is_improvement(value),
    "examples_per_second": lambda value: value in (..., None) or _is_speed(value),
    "config": lambda value: value in (..., None) or _has_all(object)(value),
    "config_version": lambda value: value is ... or isinstance(value, int),
    "params": _has_all(list),
    "model_state": lambda value: value is ... or _has_all(list)(value),
    "arrays": _are_arrays,
    "checksums": lambda value: value is ... or _are_checksums(value),  # earlier versions: none
    "files": lambda value: value is ... or _has_all(int)(value),
    "hashes": lambda value: value is ... or _has_all(str)(value),
    "warm_start": lambda value: value in (..., None) or _is_start(value),
    "continue_from": lambda value: value in (..., None) or _is_continuation(value),
    "kept_negatives": lambda value: (
        value is ... or (type(value) in (int, float) and 0 < value <= 1)
    ),
}


def _invalid(metadata: Mapping[str, Any]) -> list[str]:
    """Names of the parts that are missing or aren't what they must be."""
    return [name for name, is_valid in _PARTS.items() if not is_valid(metadata.get(name, ...))]


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
