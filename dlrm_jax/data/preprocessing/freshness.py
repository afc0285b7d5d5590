"""Compares what is on disk with what is to be made: input files, options and format."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.data.directory import FORMAT, METADATA, VOCABULARIES, Metadata, map_days
from dlrm_jax.data.formats.compression import file_hash
from dlrm_jax.data.preprocessing.staging import finished
from dlrm_jax.errors import UserError
from dlrm_jax.files import delete_directory, write_json
from dlrm_jax.workspaces import delete

BEGUN = "begun.json"
"""Name of the file that describes an unfinished directory."""

Inputs = list[dict[str, Any]]
"""Path, size and time of change of each input file."""

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
    if _accept_copies(made_from["inputs"], recipe["inputs"], metadata.content_hashes):
        # It only saves hashing next time, and the directory may be read-only.
        with contextlib.suppress(OSError):
            write_json(output / METADATA, dataclasses.asdict(metadata))
    return _first_difference(made_from, recipe)


def begin(partial: Path, recipe: dict[str, Any]) -> None:
    """Prepares a directory that an interrupted call may have left.

    It stays if it matches the recipe, and is deleted otherwise.

    Raises:
        UserError: what has this name isn't an interrupted call's.
    """
    if os.path.lexists(partial):
        made_from = _made_from(partial, recipe)
        _accept_staged_copies(partial, made_from["inputs"], recipe["inputs"])
        if not (difference := _first_difference(made_from, recipe)):
            _log.info("resuming from %s", partial)
        elif (partial / BEGUN).exists():
            _log.warning("%s doesn't match this command (%s): starting again", partial, difference)
            delete_directory(partial)
        else:
            raise UserError(
                f"{partial} is in the way: it holds finished data of another command "
                f"({difference}); move or delete it, or give another output directory"
            )
    try:
        Metadata.read(partial)
    except UserError:  # it isn't finished
        delete(partial / METADATA)
        write_json(partial / BEGUN, recipe)


def _made_from(partial: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted call was to make; the recipe if it had hardly begun."""
    if partial.is_dir() and not partial.is_symlink():
        if all(path.name.startswith((f".{BEGUN}.", f"{BEGUN}.")) for path in partial.iterdir()):
            return recipe
        with contextlib.suppress(OSError, ValueError):
            made_from = json.loads((partial / BEGUN).read_text())
            if _is_recipe(made_from):
                return made_from
        with contextlib.suppress(UserError):
            return Metadata.read(partial).made_from
    raise UserError(
        f"{partial} is in the way: it isn't unfinished work of this program, which has a {BEGUN}; "
        f"move or delete it, or give another output directory"
    )


def _is_recipe(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(inputs := found.get("inputs"), list):
        return False
    return isinstance(found.get("options"), dict) and all(
        isinstance(file, dict) and file.keys() == {"path", "size", "mtime_ns"} for file in inputs
    )


def _accept_copies(before: Inputs, inputs: Inputs, content_hashes: Sequence[str | None]) -> bool:
    """Takes copied or touched files for those of before if they have the same content."""
    accepted = False
    for old, new, content_hash in zip(before, inputs, content_hashes, strict=False):
        changed = old != new and old["size"] == new["size"]
        if changed and file_hash(Path(new["path"])) == content_hash:
            old.update(new)
            accepted = True
    return accepted


def _accept_staged_copies(partial: Path, before: Inputs, inputs: Inputs) -> None:
    """As `_accept_copies`, for an unfinished directory.

    Of a changed file that wasn't read to its end, nothing is kept.
    """
    try:
        content_hashes = Metadata.read(partial).content_hashes
    except UserError:
        content_hashes = []
        for number, (old, new) in enumerate(zip(before, inputs, strict=False)):
            columns = partial / "columns" / str(number)
            staged = finished(columns)
            content_hashes.append(staged and staged.content_hash)
            if not staged and old != new and not (partial / VOCABULARIES).exists():
                delete(columns)
                old.update(new)
    _accept_copies(before, inputs, content_hashes)


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


def _stat(paths: Sequence[Path]) -> Inputs:
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
