"""What only reading whole files tells: found once, then kept in the cache directory.

It holds for a file as long as its time of change, its size and a hash of 4 MiB of it stay the same.
There is a record for each directory of files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.data.formats.compression import file_hash, sampled_hash
from dlrm_jax.files import cache_directory, read_json, write_json
from dlrm_jax.locks import locked

Notes = Mapping[str, Any]
"""What is known of files, by name, as JSON: `stamp`, and what was found under keys of its own."""

_log = logging.getLogger(__name__)


def stamp(path: Path) -> dict[str, Any]:
    """What tells whether a file has changed, without reading all of it."""
    return {"mtime_ns": path.stat().st_mtime_ns, "hash": sampled_hash(path)}


def completed(
    files: Mapping[Path, Callable[[], Any]],
    key: str,
    notes: Notes,
    is_valid: Callable[[Any], bool],
) -> dict[str, Any]:
    """Notes of all files: those that hold as they are, others after reading the file."""
    found = {}
    for path, read in files.items():
        note = notes.get(path.name)
        if not _holds(note, path, key, is_valid):
            _log.info("reading %s", path)
            # First the stamp: the note of a file that changes meanwhile doesn't hold.
            now = stamp(path)
            kept = note if isinstance(note, dict) and now.items() <= note.items() else {}
            note = kept | now | {key: read()}
        found[path.name] = note
    return found


def remembered(
    directory: Path,
    files: Mapping[Path, Callable[[], Any]],
    key: str,
    notes: Notes,
    is_valid: Callable[[Any], bool],
) -> dict[str, Any]:
    """Notes of all files, in the cache afterwards. A file of which nothing is known is read.

    Args:
        directory: directory of the files.
        files: function for each file that reads it and returns what is noted, as JSON.
        key: name of what is noted.
        notes: notes that come with the files; may be empty.
        is_valid: whether something under the key is of the right form.
    """

    def valid(notes: Notes) -> dict[str, Any]:
        names = [path.name for path in files if _holds(notes.get(path.name), path, key, is_valid)]
        return {name: notes[name] for name in names}

    known = valid(notes)
    if len(known) == len(files):
        return known
    name = hashlib.blake2b(str(directory.resolve()).encode(), digest_size=16).hexdigest()
    # The name of earlier versions: what they found holds.
    record = cache_directory() / "id_ranges" / f"{name}.json"
    try:
        known = valid(_read(record)) | known
        if len(known) == len(files):
            return known
        with locked(record.with_suffix(".lock"), f"the check of {directory}", wait=True):
            before = _read(record)
            known = completed(files, key, before | known, is_valid)
            write_json(record, before | known)
    except OSError as error:
        _log.warning("%s: the next start reads its files again: %s", directory, error)
        known = completed(files, key, known, is_valid)
    return known


def content_hashes(directory: Path, paths: list[Path]) -> dict[str, Any]:
    """Notes of files in a directory, with the hash of all their bytes under ``content``."""
    files = {path: lambda path=path: file_hash(path) for path in paths}
    return remembered(directory, files, "content", {}, lambda found: isinstance(found, str))


def content_hash(path: Path) -> str:
    """The hash of all bytes of a file, which is read if it has changed."""
    return content_hashes(path.parent, [path])[path.name]["content"]


def _holds(note: Any, path: Path, key: str, is_valid: Callable[[Any], bool]) -> bool:
    """Whether there is a note of the file as it is now."""
    return (
        isinstance(note, dict)
        and key in note
        and is_valid(note[key])
        and stamp(path).items() <= note.items()
    )


def _read(record: Path) -> dict[str, Any]:
    try:
        notes = read_json(record)
    except (FileNotFoundError, ValueError):  # none yet, or damaged: it is written anew
        return {}
    return notes if isinstance(notes, dict) else {}
