"""Whether what lies on disk is what is wanted: of the same files, options and format."""

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

from dlrm_jax.data.directory import FORMAT, METADATA, Metadata, load_directory
from dlrm_jax.data.formats.compression import file_hash
from dlrm_jax.errors import UserError
from dlrm_jax.files import delete_directory, write_json

BEGUN = "begun.json"
"""Says of an unfinished directory what it is of."""

_log = logging.getLogger(__name__)


def wanted(paths: Sequence[Path], options: dict[str, Any]) -> dict[str, Any]:
    """What the output of these files with these options is made from.

    Raises:
        UserError: a file can't be read.
    """
    return {"format": FORMAT, "options": options, "inputs": _stat(paths)}


def fingerprint(content_hashes: Sequence[str], options: dict[str, Any]) -> str:
    """Of arrays made from these contents, wherever the files lie."""
    text = json.dumps([FORMAT, content_hashes, options])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def out_of_date(output: Path, wanted: dict[str, Any]) -> str:
    """Why an output isn't what is wanted; empty if it is."""
    try:
        metadata = Metadata.read(output)
        load_directory(output)
    except UserError as error:
        return str(error)
    found = metadata.made_from
    inputs = zip(found["inputs"], wanted["inputs"], metadata.content_hashes, strict=False)
    for old, new, content_hash in inputs:
        touched = old != new and {**old, "mtime_ns": 0} == {**new, "mtime_ns": 0}
        if touched and file_hash(Path(new["path"])) == content_hash:
            old["mtime_ns"] = new["mtime_ns"]
            # Saves hashing next time, no more: the directory may be read-only.
            with contextlib.suppress(OSError):
                write_json(output / METADATA, dataclasses.asdict(metadata))
    return _difference(found, wanted)


def begin(partial: Path, wanted: dict[str, Any]) -> None:
    """Keeps what an interrupted call of the same kind has left, removes what another has."""
    begun = partial / BEGUN
    if partial.exists():
        try:
            finished = (partial / METADATA).exists()
            found = Metadata.read(partial).made_from if finished else json.loads(begun.read_text())
        except (OSError, ValueError, UserError):
            found = {}
        if difference := _difference(found, wanted):
            _log.warning("%s is of something else (%s): starting anew", partial, difference)
            delete_directory(partial)
        else:
            _log.info("going on with what is in %s", partial)
    if not (partial / METADATA).exists():
        write_json(begun, wanted)


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first difference, in words; empty if there is none."""
    for key in ("format", "inputs", "options"):
        old, new = found.get(key), wanted[key]
        if isinstance(old, dict):
            for name in new:
                if old.get(name) != new[name]:
                    return f"{name} was {old.get(name)}, now {new[name]}"
        elif old != new:
            return f"{key} were {old}, now {new}"
    return ""


def _stat(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and time of change of files that can be read."""
    found = []
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
        found.append({"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns})
    return found
