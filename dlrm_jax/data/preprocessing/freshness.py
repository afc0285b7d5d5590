"""Compares what is on disk with what is to be made: input files, options and format."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.data.directory import FORMAT, METADATA, Metadata, map_days
from dlrm_jax.data.formats.compression import file_hash
from dlrm_jax.errors import UserError
from dlrm_jax.files import delete_directory, write_json

BEGUN = "begun.json"
"""Name of the file that describes an unfinished directory."""

_log = logging.getLogger(__name__)


def recipe(paths: Sequence[Path], options: dict[str, Any]) -> dict[str, Any]:
    """Describes the output of these files with these options, as ``Metadata.made_from`` does.

    Raises:
        UserError: a file can't be read.
    """
    return {"format": FORMAT, "options": options, "inputs": _stat(paths)}


def fingerprint(content_hashes: Sequence[str], options: dict[str, Any]) -> str:
    """The hash that identifies the arrays, independent of the paths of the input files."""
    text = json.dumps([FORMAT, content_hashes, options])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def difference(output: Path, recipe: dict[str, Any]) -> str:
    """The first difference of an output from a recipe, in words; empty if there is none."""
    try:
        metadata = Metadata.read(output)
        map_days(output, metadata)
    except UserError as error:
        return str(error)
    made_from = metadata.made_from
    inputs = zip(made_from["inputs"], recipe["inputs"], metadata.content_hashes, strict=False)
    for old, new, content_hash in inputs:
        touched = old != new and {**old, "mtime_ns": 0} == {**new, "mtime_ns": 0}
        if touched and file_hash(Path(new["path"])) == content_hash:
            old["mtime_ns"] = new["mtime_ns"]
            # It only saves hashing next time, and the directory may be read-only.
            with contextlib.suppress(OSError):
                write_json(output / METADATA, dataclasses.asdict(metadata))
    return _first_difference(made_from, recipe)


def begin(partial: Path, recipe: dict[str, Any]) -> None:
    """Prepares a directory that an interrupted call may have left.

    It stays if it matches the recipe, and is deleted otherwise.
    """
    begun = partial / BEGUN
    if partial.exists():
        try:
            if (partial / METADATA).exists():
                made_from = Metadata.read(partial).made_from
            else:
                made_from = json.loads(begun.read_text())
        except (OSError, ValueError, UserError):
            made_from = {}
        if difference := _first_difference(made_from, recipe):
            _log.warning("%s doesn't match this command (%s): starting again", partial, difference)
            delete_directory(partial)
        else:
            _log.info("resuming from %s", partial)
    if not (partial / METADATA).exists():
        write_json(begun, recipe)


def _first_difference(found: dict[str, Any], recipe: dict[str, Any]) -> str:
    """The first difference, in words; empty if there is none."""
    for key in ("format", "inputs", "options"):
        old, new = found.get(key), recipe[key]
        if isinstance(old, dict):
            for name in new:
                if old.get(name) != new[name]:
                    return f"{name} was {old.get(name)}, now {new[name]}"
        elif old != new:
            return f"{key} were {old}, now {new}"
    return ""


def _stat(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Path, size and time of change of each file; all must be readable."""
    statuses = []
    for path in paths:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "not a file")
            with path.open("rb"):
                pass
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; give the path of a file with logs"
            ) from error
        statuses.append({"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns})
    return statuses
