"""The files of a run: its metrics line by line, its summary, and the lock on its directory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from dlrm_jax.errors import UserError


@contextmanager
def owned(workdir: Path) -> Iterator[Path]:
    """Makes the directory and holds it for this process.

    Raises:
        UserError: another run holds it, or it can't be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(workdir / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"workdir {workdir} is in use by another run; wait for it, or give another --workdir"
        ) from None
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be used: {error}") from error
    try:
        yield workdir
    finally:
        lock.release()


class Record:
    """``metrics.jsonl``: one object a line with step, split and metrics.

    Args:
        path: of the file.
        resumed_from: later lines, of a run that went on beyond its last checkpoint, are
            dropped: their steps are done again.
    """

    def __init__(self, path: Path, resumed_from: int):
        self.path = path
        if path.exists():
            lines = path.read_text().splitlines()
            replace_text(path, "".join(f"{x}\n" for x in lines if _step(x) <= resumed_from))

    def __call__(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Appends one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:  # cut off when the run was killed
        return float("inf")


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".writing")
    temporary.write_text(text)
    temporary.replace(path)
