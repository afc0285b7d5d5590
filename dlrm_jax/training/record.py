"""The files of a run: its metrics line by line, its summary, and the lock of its workdir."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dlrm_jax.errors import UserError
from dlrm_jax.files import locked, write_text
from dlrm_jax.processes import is_process_0, on_process_0


@contextmanager
def owned(workdir: Path) -> Iterator[Path]:
    """Context that makes a workdir and locks it for this run, all processes of it.

    Args:
        workdir: the directory, on a disk that all processes share.

    Yields:
        The directory.

    Raises:
        UserError: another run has locked it, it can't be made, a process doesn't see it, or its
            path has brackets.
    """
    with ExitStack() as stack:
        on_process_0(lambda: _lock(workdir, stack))
        if not workdir.is_dir():
            raise UserError(
                f"workdir {workdir}: process 0 has locked it, but this process doesn't see it; "
                f"expected a directory on a disk that all processes share"
            )
        yield workdir


def _lock(workdir: Path, stack: ExitStack) -> None:
    if re.search(r"\[.*\]", str(workdir.absolute())):
        # Orbax takes such a path for a pattern when it reads, and finds nothing.
        raise UserError(f"workdir {workdir}: expected a path without brackets; give another one")
    try:
        stack.enter_context(locked(workdir / ".lock", f"workdir {workdir}"))
    except FileExistsError as error:
        found = "a file" if workdir.exists() else "a link to nothing"
        raise UserError(
            f"workdir {workdir}: expected a directory, got {found}; give another one"
        ) from error
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be used: {error}") from error


class Record:
    """Writes ``metrics.jsonl``, one object a line with step, split and metrics, in process 0.

    Args:
        path: file to write to.
        resumed_from: step of the checkpoint that the run resumes from. Later lines are dropped, as
            their steps are done again, and so is the test result.
        events: directory of TensorBoard's event files, which get the same metrics; None for none.
            If it has no event file yet, it also gets the metrics of the kept lines.
    """

    def __init__(self, path: Path, resumed_from: int, events: Path | None = None):
        self.path = path
        self._events = None
        if not is_process_0():
            return
        kept = []
        if path.exists():
            # What a crash of the machine has damaged isn't always text.
            lines = path.read_text(errors="replace").splitlines()
            kept = [entry for line in lines if (entry := _entry(line, resumed_from))]
        write_text(path, "".join(map(_line, kept)))
        if events:
            # Here, since it imports other services' packages where they are installed.
            from dlrm_jax.training.events import EventFile

            # The last step is written again: it may have the test result, which isn't kept.
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
        try:
            with open(self.path, "a", opener=_existing) as file:
                file.write(_line(entry))
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; check that the workdir is where it "
                f"was, and that the disk is large enough. Its checkpoints are intact"
            ) from error
        if self._events:
            self._events(entry)

    def flush(self) -> None:
        """Flushes the lines to disk, so that none is older there than a checkpoint saved next."""
        if is_process_0() and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events:
            self._events.close()


def _existing(path: str, flags: int) -> int:
    """Opens a file that must be there: a workdir that has been moved mustn't come up anew."""
    return os.open(path, flags & ~os.O_CREAT)


def _entry(line: str, resumed_from: int) -> Any:
    """The entry of a line, None if it isn't kept."""
    try:
        entry = json.loads(line)
        return entry if entry["step"] <= resumed_from and entry["split"] != "test" else None
    except (ValueError, KeyError, TypeError, RecursionError):  # cut off by a kill, or not an entry
        return None


def _line(entry: Mapping[str, Any]) -> str:
    return to_json(entry) + "\n"


def to_json(value: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON in which numbers that aren't finite are null, as JSON has no NaN."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Versions of the libraries that the numbers depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
