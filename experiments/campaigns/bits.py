"""What runs leave, bit by bit: arrays of checkpoints, arrays of data, metrics without times.

The files of a checkpoint have names and orders of their own each time, so its arrays are read.
Everything else is compared byte by byte: also what shouldn't be there any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from dlrm_jax.errors import UserError
from dlrm_jax.training.orbax_io import load

# What depends on interruptions, on the speed of the machine and on names that Orbax makes up. The
# ranges of ids are beside times of change, and follow from the arrays.
_DESCRIPTIONS = ("summary.json", "metadata.json")
_PASSING = ("examples_per_second", "resumed_from", "files", "hashes", "id_ranges")


def bits(directory: Path) -> dict[str, str]:
    """The hash of each array and file in a workdir or a directory of data.

    Names are relative paths; arrays in a checkpoint have theirs behind a colon. Lock files are left
    out, and what depends on time. What can't be read has the error in place of a hash.
    """
    found: dict[str, str] = {}
    _visit(directory, directory, found)
    return found


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The names of what is missing, left over or different, each with a word; empty if equal."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"left over: {name}" for name in found if name not in expected]
    both = [name for name in expected if name in found]
    return lines + [f"different: {name}" for name in both if expected[name] != found[name]]


def _visit(directory: Path, root: Path, found: dict[str, str]) -> None:
    if (directory / "_CHECKPOINT_METADATA").exists():
        _visit_item(directory, str(directory.relative_to(root)), found)
        return
    for path in sorted(directory.iterdir()):
        name = str(path.relative_to(root))
        if path.is_dir():
            _visit(path, root, found)
            if not any(path.iterdir()):
                found[name] = "an empty directory"
        elif path.name in _DESCRIPTIONS:
            found[name] = _described(path)
        elif not path.name.endswith(".lock"):
            found[name] = _hash(path.read_bytes())


def _described(path: Path) -> str:
    try:
        described = json.loads(path.read_text())
    except ValueError as error:
        return f"unreadable: {error}"
    return _hash(json.dumps({x: y for x, y in described.items() if x not in _PASSING}).encode())


def _visit_item(item: Path, name: str, found: dict[str, str]) -> None:
    """The arrays that Orbax has written to a directory."""
    try:
        abstract = jax.tree.map(_empty, ocp.metadata(str(item.absolute())).metadata)
        arrays = load(item, abstract)
    except (UserError, ValueError, OSError, KeyError) as error:
        found[name] = f"unreadable: {error}"
        return
    for path, array in jax.tree_util.tree_leaves_with_path(arrays):
        described = f"{array.dtype} {array.shape} ".encode()
        found[name + ":" + jax.tree_util.keystr(path, simple=True, separator="/")] = _hash(
            described + np.asarray(array).tobytes()
        )


def _empty(leaf: Any) -> np.ndarray:
    return np.empty(leaf.shape, leaf.dtype)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
