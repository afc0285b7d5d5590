"""Notes of which run publishes into a directory: one in the directory, one beside its checkpoints.

A run that was killed before its first checkpoint is the same one when it begins at step 0 again. It
is another one where the checkpoints were deleted.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json, write_json

NOTE = "publishing.json"

_KEY = "run"


def claim(directory: Path, workdir: Path, published: int, step: int, is_other_model: bool) -> None:
    """Notes that a run publishes into a directory.

    Args:
        directory: directory of the publications.
        workdir: directory of the run.
        published: last step that is published; -1 for none.
        step: step of the state that the run goes on from.
        is_other_model: whether what is published is of another model.

    Raises:
        UserError: what is published is of another model or run, and of a later step, so that
            nothing would be published for long; or a note can't be read or written.
    """
    before, run = _read(directory / NOTE), _read(workdir / "checkpoints" / NOTE)
    if run is None:
        _write(workdir / "checkpoints" / NOTE, run := secrets.token_hex(16))
    # Earlier versions noted nothing: a run that has a checkpoint is taken for the same one.
    is_other_run = before != run if before else step == 0
    if step < published and (is_other_run or is_other_model):
        raise UserError(
            f"publish: expected a run at step {published} or later, or an empty directory, got "
            f"step {step}, and {directory} has step {published} of another "
            f"{'model or row format' if is_other_model else 'run'}; give --publish another name"
        )
    if before != run:
        _write(directory / NOTE, run)


def _read(path: Path) -> str | None:
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"publish: cannot read {path}: {error}; remove it") from error
    if not isinstance(found, dict) or not isinstance(found.get(_KEY), str):
        raise UserError(f"publish: {path}: expected the id of a run, got {found!r}; remove it")
    return found[_KEY]


def _write(path: Path, run: str) -> None:
    try:
        write_json(path, {_KEY: run})
    except OSError as error:
        raise UserError(f"publish: cannot write {path}: {error}") from error
