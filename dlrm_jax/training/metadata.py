"""The metadata of one checkpoint, and whether all its files are there; see `checkpoint`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from dlrm_jax.errors import DamagedCheckpointError, UserError

FORMAT = 3

FORMATS: Mapping[int, Mapping[str, str]] = {2: {"table": "weights"}, FORMAT: {}}
"""Formats that can be read, each with its old names of arrays."""

_FILE = "metadata.json"


def write_metadata(checkpoint: Path, metadata: Mapping[str, Any]) -> None:
    """Writes the metadata beside the arrays, which must be complete, with the size of each file."""
    files = {
        str(path.relative_to(checkpoint)): _size(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    content = {"format": FORMAT, **metadata, "files": files}
    (checkpoint / _FILE).write_text(json.dumps(content, indent=1))


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """The metadata of one checkpoint. All its files are there and as long as they were.

    Raises:
        UserError: there is no checkpoint, or one of another format.
        DamagedCheckpointError: the metadata can't be read, or a file is missing or truncated.
    """
    damaged = functools.partial(DamagedCheckpointError, str(checkpoint))
    try:
        text = (checkpoint / _FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _unreadable(checkpoint, f"it has no {_FILE}") from error
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {checkpoint}: {error}") from error
    try:
        metadata = json.loads(text)
        found = metadata["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _unreadable(checkpoint, f"its {_FILE} can't be read ({error})") from error
    if found not in tuple(FORMATS):  # damaged, it may be of a type that has no hash
        raise UserError(
            f"checkpoint {checkpoint} has format {found}, this program reads "
            f"{' and '.join(map(str, FORMATS))}"
        )
    missing = [name for name, is_valid in _PARTS.items() if not is_valid(metadata.get(name, ...))]
    if missing:
        raise damaged(f"its {_FILE} has no {' and no '.join(missing)}")
    for name, size in metadata.get("files", {}).items():  # earlier versions noted none
        file = checkpoint / name
        if not file.is_file():
            raise damaged(f"it has no {name}")
        if file.stat().st_size != size:
            raise damaged(f"{name} has {file.stat().st_size:,} of {size:,} bytes")
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
        str(each.get("item")).isdecimal() and isinstance(each.get("shape"), list)
        for each in value.values()
    )


# Parts of the metadata, and what they must be; `...` is a part that isn't there.
_PARTS: Mapping[str, Callable[[Any], bool]] = {
    "step": lambda value: isinstance(value, int),
    "identity": _has_all(object),
    "validation": lambda value: value is None or _has_all(int | float | None)(value),
    "config": lambda value: value in (..., None) or _has_all(object)(value),
    "config_version": lambda value: value is ... or isinstance(value, int),
    "params": _has_all(list),
    "model_state": lambda value: value is ... or _has_all(list)(value),
    "arrays": _are_arrays,
    "files": lambda value: value is ... or _has_all(int)(value),
}


def _size(path: Path) -> int:
    with path.open("rb") as file:  # opened, so that NFS asks for what other machines have written
        return file.seek(0, 2)


def _checkpoints_in(path: Path) -> str:
    """A hint for users who give a run, or its checkpoints, instead of a checkpoint."""
    for directory in (path / "checkpoints", path):
        if directory.is_dir():
            found = sorted(str(x) for x in directory.iterdir() if x.name.isdecimal())
            if found:
                return f"; it has the checkpoints {', '.join(found)}"
    return ""
