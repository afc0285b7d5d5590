"""Makes the Python environments of contestants once and keeps them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dlrm_jax.errors import UserError
from dlrm_jax.files import write_text
from dlrm_jax.locks import locked

_REQUIREMENTS = [Path(__file__).with_name(name) for name in ("torch.txt", "requirements.txt")]

# The requirements of a complete environment; without this file it is incomplete.
_COMPLETE = "complete.txt"


def ready(
    directory: Path,
    files: Sequence[Path] | None = None,
    what: str = "PyTorch, TorchRec and FBGEMM",
) -> Path:
    """Makes or completes an environment if it doesn't match the requirements; returns its Python.

    Args:
        directory: directory of the environment.
        files: files of requirements; None for those of PyTorch's contestants.
        what: names of what is installed, for the user.

    Raises:
        UserError: the directory contains other files, or pip fails.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--environment: expected a directory, got the file {directory}")
    if directory.is_dir() and any(directory.iterdir()) and not _is_environment(directory):
        raise UserError(
            f"--environment: expected a new or empty directory or one that this program has made, "
            f"but {directory} contains other files"
        )
    lock_file = directory.with_name(f".{directory.name}.lock")
    with locked(lock_file, f"environment {directory}", wait=True):
        files = _REQUIREMENTS if files is None else files
        texts = [file.read_text() for file in files]
        requirements = "\n".join([f"# Python {sys.version.split()[0]}", *texts])
        python = directory / "bin" / "python"
        complete = directory / _COMPLETE
        if not complete.is_file() or complete.read_text() != requirements:
            complete.unlink(missing_ok=True)
            print(f"installing {what} into {directory}", file=sys.stderr)
            _call([sys.executable, "-m", "venv", directory])
            for file in files:
                _call([python, "-m", "pip", "install", "--no-deps", "-r", file])
            write_text(complete, requirements)
        return python


def _is_environment(directory: Path) -> bool:
    # An interrupted installation may have left only one of these.
    return any((directory / name).exists() for name in ("pyvenv.cfg", "bin", "lib", "include"))


def _call(command: list[str | Path]) -> None:
    text = " ".join(map(str, command))
    try:
        result = subprocess.run(
            command,
            env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise UserError(f"{text}: {error}") from error
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-5:]
        raise UserError(f"{text} failed, code {result.returncode}: {' '.join(errors)}")
