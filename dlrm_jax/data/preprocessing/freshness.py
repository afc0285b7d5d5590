"""Compares what is on disk with what is to be made: input files, options and format."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.data.directory import map_days
from dlrm_jax.data.memory import content_hash, stamp
from dlrm_jax.data.metadata import FORMAT, METADATA, VOCABULARIES, Metadata
from dlrm_jax.data.preprocessing.own_files import BEGUN, check_own
from dlrm_jax.data.preprocessing.staging import finished
from dlrm_jax.errors import UserError
from dlrm_jax.files import delete_directory, read_json, write_json
from dlrm_jax.workspaces import delete

OF_EARLIER_CSV = (
    "an earlier version made it, which took only empty fields of CSV for missing, not NA, NaN, nan "
    "and null"
)
"""The difference of an output whose options and files are the same but for what is missing."""

_CSV_MISSING = "csv_missing"
_FLAGS = {"held_out": "--validation and --test", "grown_from": "--grow"}

Inputs = list[dict[str, Any]]
"""Path, size, time of change and a hash of 4 MiB of each input file.

Earlier versions had no hash: those files are equal only if all of their content is.
"""

_log = logging.getLogger(__name__)


def recipe(inputs: Inputs, options: dict[str, Any]) -> dict[str, Any]:
    """Describes the output of these files with these options, as ``Metadata.made_from`` does."""
    return {"format": FORMAT, "options": options, "inputs": inputs}


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
    others, of_missing = _other_options(made_from, recipe), ""
    if others == OF_EARLIER_CSV:  # it says that there is no other difference
        others, of_missing = "", others
    inputs = made_from["inputs"], recipe["inputs"]
    return others or _other_inputs(*inputs, metadata.content_hashes) or of_missing


def is_ours(output: Path) -> bool:
    """Whether a directory says what this program made it from, or was making it from."""
    for name in (METADATA, BEGUN):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            described = read_json(output / name)
            if _is_recipe(described["made_from"] if name == METADATA else described):
                return True
    return False


def begin(partial: Path, recipe: dict[str, Any]) -> None:
    """Prepares a directory that an interrupted call may have left.

    It stays if it matches the recipe, and is deleted otherwise.

    Raises:
        UserError: what has this name isn't an interrupted call's, or holds a user's files and
            would be deleted.
    """
    if os.path.lexists(partial):
        made_from, inputs = _made_from(partial, recipe), recipe["inputs"]
        difference = _other_options(made_from, recipe)
        if not difference:
            before = _forget_unread(partial, made_from["inputs"], inputs)
            difference = _other_inputs(before, inputs, _staged_hashes(partial, len(before)))
        if not difference:
            _log.info("resuming from %s", partial)
        elif (partial / BEGUN).exists():
            check_own(partial)
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
            made_from = read_json(partial / BEGUN)
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
        isinstance(file, dict) and file.keys() - {"hash"} == {"path", "size", "mtime_ns"}
        for file in inputs
    )


def _other_inputs(before: Inputs, inputs: Inputs, hashes: Sequence[str | None]) -> str:
    """The difference of input files, in words; empty for copied or touched files."""
    same = len(before) == len(inputs) == len(hashes) and all(
        old == new or (old.get("size") == new["size"] and _content_hash(new["path"]) == known)
        for old, new, known in zip(before, inputs, hashes, strict=True)
    )
    return "" if same else f"inputs were {before}, now {inputs}"


def _content_hash(path: str) -> str:
    try:
        return content_hash(Path(path))
    except OSError as error:
        raise _unreadable(path, error) from error


def _staged_hashes(partial: Path, files: int) -> list[str | None]:
    """Hash of each file that was read to its end for an unfinished directory; else None."""
    try:
        return [*Metadata.read(partial).content_hashes]
    except UserError:
        staged = [finished(_columns(partial, number)) for number in range(files)]
        return [file and file.content_hash for file in staged]


def _forget_unread(partial: Path, before: Inputs, inputs: Inputs) -> Inputs:
    """Deletes what was staged of changed files that weren't read to their end.

    Returns:
        The input files that all which is left is of.
    """
    if any((partial / name).exists() for name in (METADATA, VOCABULARIES)):
        return before  # all files were read
    left = list(before)
    for number, (old, new) in enumerate(zip(before, inputs, strict=False)):
        columns = _columns(partial, number)
        # Touched, too: no hash tells whether the rest of it is the same.
        if old != new and not finished(columns):
            delete(columns)
            left[number] = new
    return left


def _columns(partial: Path, number: int) -> Path:
    """The directory in which a file is staged."""
    return partial / "columns" / str(number)


def _other_options(found: dict[str, Any], recipe: dict[str, Any]) -> str:
    """The first difference of format and options, in words; empty if there is none."""
    if found.get("format") != recipe["format"]:
        return f"format was {found.get('format')}, now {recipe['format']}"
    names = {"split": None} | recipe["options"]  # the split of earlier versions isn't named
    for name in sorted(names, key=_CSV_MISSING.__eq__):  # it comes last
        old, new = found["options"].get(name), recipe["options"].get(name)
        if old != new:
            if name == "split":
                return f"--split was {_split_of(found)}, now {_split_of(recipe)}"
            if name in _FLAGS:  # it isn't an option that a user gives
                before = "given" if old else "not given"
                now = "with other data" if old and new else "given" if new else "not given"
                return f"{_FLAGS[name]}: {before} before, now {now}"
            if name == _CSV_MISSING and old is None:
                return OF_EARLIER_CSV
            return f"{name} was {old}, now {new}"
    return ""


def _split_of(recipe: dict[str, Any]) -> str:
    """The rule of the split of a recipe."""
    options = recipe["options"]
    return options.get("split") or ("files" if options.get("held_out") else "days")


def is_split_by_earlier_versions(directory: Path) -> bool:
    """Whether a directory is finished or begun with a split that earlier versions made."""
    for name in (METADATA, BEGUN):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            described = read_json(directory / name)
            described = described["made_from"] if name == METADATA else described
            if _is_recipe(described):
                options = described["options"]
                return "split" not in options and not options.get("held_out")
    return False


def check_unchanged(partial: Path, inputs: Inputs) -> None:
    """Checks that files are as they were before they were staged; of others nothing is kept.

    Raises:
        UserError: a file has changed, was touched or is gone.
    """
    changed = []
    for number, before in enumerate(inputs):
        try:
            now = describe([Path(before["path"])])
        except UserError:
            now = []
        if now == [before]:
            continue
        changed.append(before["path"])
        only_touched = now and now[0] | {"mtime_ns": before["mtime_ns"]} == before
        if not only_touched:
            delete(_columns(partial, number))
    if changed:
        raise UserError(f"{changed[0]} changed while it was read; try again when it is complete")


def describe(paths: Sequence[Path]) -> Inputs:
    """Describes each file, see `Inputs`.

    Raises:
        UserError: a file can't be read.
    """
    statuses = []
    for path in paths:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "not a file")
            statuses.append({"path": str(path), "size": status.st_size} | stamp(path))
        except OSError as error:
            raise _unreadable(path, error) from error
    return statuses


def _unreadable(path: str | Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror}; give the path of a file with logs")
