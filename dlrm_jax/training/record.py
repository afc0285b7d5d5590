"""The files of a run: its metrics line by line, its summary, and the lock on its directory."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from dlrm_jax.errors import UserError
from dlrm_jax.files import write_text
from dlrm_jax.processes import is_process_0, on_process_0


@contextmanager
def owned(workdir: Path) -> Iterator[Path]:
    """Makes the directory and holds it for this run, all its processes.

    Raises:
        UserError: another run holds it, it can't be made, or it has a name that isn't safe.
    """
    lock = filelock.FileLock(workdir / ".lock", timeout=0)
    on_process_0(lambda: _acquire(workdir, lock))
    if not workdir.is_dir():
        raise UserError(
            f"workdir {workdir}: process 0 has it, but this process doesn't see it; expected a "
            f"directory on a disk that all processes share"
        )
    try:
        yield workdir
    finally:
        lock.release()


def _acquire(workdir: Path, lock: filelock.BaseFileLock) -> None:
    if re.search(r"\[.*\]", str(workdir.absolute())):
        # What Orbax writes under such a name it doesn't find again: it takes it for a pattern.
        raise UserError(f"workdir {workdir}: expected a path without brackets; give another one")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"workdir {workdir} is in use by another run; wait for it, or give another --workdir"
        ) from None
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be used: {error}") from error


class Record:
    """``metrics.jsonl``: one object a line with step, split and metrics; process 0 writes it.

    Args:
        path: of the file.
        resumed_from: later lines, of a run that went on beyond its last checkpoint, are
            dropped: their steps are done again. So is the test result, which comes last.
        events: a directory of TensorBoard's event files, which are told the same; None for none.
            If it has none yet, they are told the lines that are kept, too.
    """

    def __init__(self, path: Path, resumed_from: int, events: Path | None = None):
        self.path = path
        self._events = None
        if not is_process_0():
            return
        kept = []
        if path.exists():
            entries = map(_entry, path.read_text().splitlines())
            kept = [entry for entry in entries if _is_before(entry, resumed_from)]
            write_text(path, "".join(map(_line, kept)))
        if events:
            # Here, since it imports what it finds of other services' packages.
            from dlrm_jax.training.events import EventFile

            # The last step is told again: it may have the test result, which isn't kept.
            first_step = resumed_from if any(events.glob("events.*")) else 0
            self._events = EventFile(events, first_step)
            for entry in kept:
                if entry["step"] >= first_step:
                    self._events(entry)

    def __call__(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Appends one line."""
        if not is_process_0():
            return
        entry = _finite({"step": step, "split": split, **metrics})
        with self.path.open("a") as file:
            file.write(_line(entry))
        if self._events:
            self._events(entry)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events:
            self._events.close()


def _entry(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # cut off when the run was killed
        return None


def _is_before(entry: Any, step: int) -> bool:
    try:
        return entry["step"] <= step and entry["split"] != "test"
    except (KeyError, TypeError):  # not an entry
        return False


def _line(entry: Mapping[str, Any]) -> str:
    return to_json(entry) + "\n"


def to_json(value: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON as every reader takes it: what isn't finite becomes null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
