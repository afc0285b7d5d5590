"""The directory that a program makes of a model when its training has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.errors import UserError
from dlrm_jax.files import scratch_directory
from dlrm_jax.processes import is_distributed


def check_export(workdir: Path) -> None:
    """Checks before all training that the directory of ``--export`` can be made.

    Args:
        workdir: directory of the run.

    Raises:
        UserError: it exists, is the workdir or above it, or can't be made; or there are several
            processes.
    """
    path = Path(FLAGS.export)
    if is_distributed():
        raise UserError("export: expected a run of one process, got one of several")
    try:
        if workdir.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"export: expected a directory that the run {workdir} isn't in, got {path}"
            )
        if os.path.lexists(path):
            raise UserError(f"export: expected a directory to make, got {path}, which exists")
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_directory(path):
            pass
    except OSError as error:
        raise UserError(
            f"export: expected a directory that can be made, got {path}: {error}"
        ) from error


@contextmanager
def exporting(workdir: Path) -> Iterator[Path]:
    """Context that writes the directory of ``--export``, which it gives.

    Args:
        workdir: directory of the run.

    Raises:
        UserError: its body raises one; the message says that the run is kept.
    """
    try:
        yield Path(FLAGS.export)
    except UserError as error:
        raise UserError(
            f"{error}. The run is kept in {workdir}: the same command with another --export "
            f"trains no more"
        ) from error
