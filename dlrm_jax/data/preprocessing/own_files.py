"""The files that preparation makes: a user's own among them, or in their place, are kept."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dlrm_jax.data.metadata import METADATA, VOCABULARIES
from dlrm_jax.errors import UserError
from dlrm_jax.files import move_into_place, move_to_new
from dlrm_jax.workspaces import is_left, sweep

BEGUN = "begun.json"
"""Name of the file that describes an unfinished directory."""

TEMPORARY = ("columns", "expansions")
"""Directories of an unfinished directory that the finished one lacks."""

# Earlier versions wrote to NAME.partial, then renamed.
_OWN = re.compile(
    rf"({'|'.join(map(re.escape, (METADATA, BEGUN, *TEMPORARY)))}|{VOCABULARIES}/[^/]+\.parquet"
    r"|day_\d+_((dense|labels|weights|rows|group_\d+|sparse)\.npy|sparse_multi_hot\.npz))(\.partial)?"
)


def check_own(directory: Path, name: Path | None = None) -> None:
    """Checks that nothing else is in a directory of arrays, finished or not, that is to be deleted.

    Args:
        directory: the directory.
        name: its name in the message, if it has another one meanwhile.

    Raises:
        UserError: something else is there; the message names it.
    """
    found = _other(directory)
    if found:
        raise UserError(
            f"{name or directory} is in the way: it holds {found}, which this program didn't put "
            f"there; move that, or give another output directory"
        )


def _other(directory: Path, inside: str = "") -> str | None:
    """The first entry of a directory that this program doesn't make."""
    for path in sorted(directory.iterdir()):
        name = f"{inside}{path.name}"
        if name == VOCABULARIES and path.is_dir() and not path.is_symlink():
            if found := _other(path, f"{name}/"):
                return found
        elif not (_OWN.fullmatch(name) or is_left(path)):
            return name
    return None


def check_outside(paths: Sequence[Path], directories: Sequence[Path]) -> None:
    """Checks that no input lies where the output goes.

    Args:
        paths: the input files, resolved.
        directories: output and its unfinished directory, resolved.

    Raises:
        UserError: one does.
    """
    for path in paths:
        for directory in directories:
            if directory in path.parents:
                raise UserError(
                    f"{path} lies in the output {directory}; move it, or give another output "
                    f"directory"
                )


def publish(partial: Path, output: Path, replaced: os.stat_result | None) -> None:
    """Gives a finished directory its name.

    Args:
        partial: the finished directory.
        output: its name.
        replaced: status of the earlier output, which this program made and which is to be
            replaced; None if there was none.

    Raises:
        UserError: something else has the name by now, or a user's files are in the earlier output.
            Both directories stay as they are.
        OSError: it can't be renamed.
    """
    came_up = UserError(
        f"{output} came up while this command worked, and is left as it is; what was made is "
        f"complete in {partial}; move {output} away and run the same command again"
    )

    def check(old: Path) -> None:
        if not (replaced and os.path.samestat(old.lstat(), replaced)):
            raise came_up
        check_own(old, output)

    if replaced and output.is_dir():
        move_into_place(partial, output, check)
        return
    try:
        move_to_new(partial, output)
    except UserError as error:
        raise came_up from error
    sweep(output.parent, f"{output.name}.")  # of a process killed between two renames
