"""The files of a run: its metrics line by line, its summary, and the lock of its workdir."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json, write_text
from dlrm_jax.locks import advice_on, locked
from dlrm_jax.processes import is_process_0, on_process_0
from dlrm_jax.training.retention import check_path

LOCK = ".lock"
"""The file in a workdir that its run has locked."""

_AT_THE_END = ("test", "test_of_last")
"""Splits whose metrics a run that goes on takes anew."""

_KINDS = {"checkpoints": "a run", "days.json": "a loop over days", "study.sqlite3": "a search"}
"""What has made a directory, by the name of a file or directory in it."""


@contextmanager
def owned(workdir: Path, own: str = "checkpoints") -> Iterator[Path]:
    """Context that makes a workdir and locks it for this run, all processes of it.

    Args:
        workdir: the directory, on a disk that all processes share.
        own: name of what such a run has in its workdir. If it is there, others may be, too: earlier
            versions mixed them.

    Yields:
        The directory.

    Raises:
        InUseError: another run has locked it.
        UserError: it can't be made, a process doesn't see it, its path
            isn't one that checkpoints can have, or prepared data, results of another kind or a
            user's own files are in it.
    """
    with ExitStack() as stack:
        on_process_0(lambda: _own(workdir, own, stack))
        if not workdir.is_dir():
            raise UserError(
                f"workdir {workdir}: process 0 has locked it, but this process doesn't see it; "
                f"expected a directory on a disk that all processes share"
            )
        yield workdir


def _own(workdir: Path, own: str, stack: ExitStack) -> None:
    try:
        check_path(workdir)
        _check_kind(workdir, own)
        _check_no_data(workdir)
        stack.enter_context(locked(workdir / LOCK, f"workdir {workdir}"))
        _check_results(workdir)
    except FileExistsError as error:
        found = "a file" if workdir.exists() else "a link to nothing"
        raise UserError(
            f"workdir {workdir}: expected a directory, got {found}; give another one"
        ) from error
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be used: {error}{advice_on(error)}") from error


def _check_kind(workdir: Path, own: str) -> None:
    """Checks that files of different kinds of runs don't mix: they have the same names."""
    for name, kind in _KINDS.items():
        if (workdir / name).exists() and not (workdir / own).exists():
            raise UserError(
                f"workdir {workdir} is that of {kind}: it has {name}; give another workdir"
            )


def _check_results(workdir: Path) -> None:
    """Checks that a new run replaces results of runs alone, not files of the same names."""
    if (workdir / "checkpoints").exists():
        return
    ours = _is_summary(workdir / "summary.json")
    for name in ("summary.json", "evaluation.json", "calibration.json"):
        path = workdir / name
        if path.exists() and not (_is_summary(path) or (name == "calibration.json" and ours)):
            raise UserError(
                f"workdir {workdir} has a file {name} that isn't the result of a run, and a run "
                f"writes one; move it, or give another workdir"
            )


def _is_summary(path: Path) -> bool:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"mesh", "devices"} <= found.keys()


def _check_no_data(workdir: Path) -> None:
    """Checks that a new run isn't written among arrays: whoever prepares them anew deletes all."""
    arrays = workdir / "day_0_dense.npy"
    if arrays.exists() and not (workdir / "checkpoints").exists():
        raise UserError(
            f"workdir {workdir} has prepared data ({arrays.name}); expected the directory of a "
            f"run, or a new one; give another workdir"
        )


class Record:
    """Writes ``metrics.jsonl``, one object a line with step, split and metrics, in process 0.

    Args:
        path: file to write to.
        resumed_from: step of the checkpoint that the run resumes from. Later lines are dropped, as
            their steps are done again, and so is the test result.
        events: directory of TensorBoard's event files, which get the same metrics; None for none.
            If it has no event file yet, it also gets the metrics of the kept lines.

    Raises:
        UserError: a new run would drop lines that no run has written, or the file can't be written.
    """

    def __init__(self, path: Path, resumed_from: int, events: Path | None = None):
        self.path = path
        self._events = None
        if not resumed_from:
            on_process_0(lambda: _check_own(path))
        if not is_process_0():
            return
        kept = [
            x
            for x in read_record(path)
            if x["step"] <= resumed_from and x["split"] not in _AT_THE_END
        ]
        write_result(path, "".join(map(_line, kept)))
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
        with self._open() as file:
            file.write(_line(entry))
        if self._events:
            self._events(entry)

    def flush(self) -> None:
        """Flushes the lines to disk, so that none is older there than a checkpoint saved next."""
        if is_process_0():
            with self._open() as file:
                os.fsync(file.fileno())

    @contextmanager
    def _open(self) -> Iterator[TextIO]:
        with (
            _written(self.path),
            open(self.path, "a", encoding="utf-8", opener=_existing) as file,
        ):
            yield file

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events:
            self._events.close()


def write_result(path: Path, text: str) -> None:
    """Writes or replaces a text file of a workdir in one step.

    Raises:
        UserError: it can't be written, as on a full disk.
    """
    with _written(path):
        write_text(path, text)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; check that the workdir is where it "
            f"was, and that the disk is large enough. Its checkpoints are intact"
        ) from error


def read_record(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` in their order; none without a file.

    A run may still be writing it. Lines that are cut off or damaged are left out.
    """
    # What a crash of the machine has damaged isn't always text.
    lines = path.read_text(errors="replace", encoding="utf-8").splitlines() if path.exists() else []
    return [entry for line in lines if (entry := _entry(line))]


def _existing(path: str, flags: int) -> int:
    """Opens a file that must be there: a workdir that has been moved mustn't come up anew."""
    return os.open(path, flags & ~os.O_CREAT)


def _entry(line: str) -> Any:
    """The entry of a line; None if it has none, as where a kill has cut it off."""
    try:
        entry = json.loads(line)
        return entry if type(entry["step"]) is int and "split" in entry else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _check_own(path: Path) -> None:
    """Checks that all lines are of runs; a crash may have damaged some, and cut off the last."""
    text = path.read_text(errors="replace", encoding="utf-8") if path.exists() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        is_damaged = "\0" in line or "\ufffd" in line
        is_cut_off = not line.endswith("\n") and '{"step": '.startswith(line[:9])
        if line.strip() and not (is_damaged or is_cut_off) and _entry(line) is None:
            raise UserError(
                f"{path}, line {number}: expected the metrics of a run, got {line[:80]!r}; move "
                f"the file away, or give another workdir"
            )


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
