"""A folder of labelled segments, made of a folder of rows and one of events as they come.

Each step joins some segments, and has its state in a directory of its own, which appears whole or
not at all: what is held, how far both folders were read, and the segment that leaves, which is
moved out of it. So each row leaves as often as it must, also if the program is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from dlrm_jax.errors import UserError
from dlrm_jax.files import delete_directory
from dlrm_jax.locks import locked
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.join_state import JoinState, load, publish, save
from dlrm_jax.stream.late_labels import Held, LateLabels, join, latest_time, no_rows
from dlrm_jax.stream.position import Position, Progress
from dlrm_jax.stream.same_columns import as_before
from dlrm_jax.workspaces import sweep

_STATES = ".join"
_MANY = 1 << 16
"""Rows of which a step takes no further segment."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step has done.

    Attributes:
        segment: name of the segment that has left; empty if none has.
        rows: number of its rows.
        positive: number of its rows with label 1.
        held: number of rows that are held.
    """

    segment: str
    rows: int
    positive: int
    held: int


class JoinedFolder:
    """The segments that leave; see `joined_folder`.

    Args:
        settings: way in which rows get their labels.
        rows: folder of rows.
        events: folder of events.
        output: folder of what leaves.
    """

    def __init__(self, settings: LateLabels, rows: Path, events: Path, output: Path):
        self._settings, self._output = settings, output
        self._number, self._held, self._events_until = 0, Held(), 0
        self._read = {"rows": Progress(), "events": Progress()}
        self._load()
        self._folders = {
            name: Folder(directory, None, self._read[name].segments)
            for name, directory in (("rows", rows), ("events", events))
        }

    @property
    def held(self) -> int:
        """Number of rows that are held."""
        return 0 if self._held.rows is None else len(self._held.rows)

    def step(self) -> Step | None:
        """Joins what has come; None if that is nothing.

        Raises:
            UserError: a segment can't be read, see `Folder` and `join`, or nothing can be written.
        """
        rows = self._new("rows", lambda frame: len(frame) >= _MANY)
        if rows is None and self._held.rows is None:
            return None  # events alone: the columns of rows aren't known yet
        now = self._held.now
        if rows is not None:
            now = max(now, latest_time(self._settings, rows, "rows"))
        until = now + round(self._settings.seconds * 1e6)

        def is_far(events: pl.DataFrame) -> bool:
            latest = latest_time(self._settings, events, "events")
            self._events_until = max(self._events_until, latest)
            return self._events_until > until

        # Later events are left where they are, since no row waits for them yet.
        events = None if self._events_until > until else self._new("events", is_far)
        if rows is None:
            if events is None:
                return None
            rows = no_rows(self._held)
        if events is None:
            events = rows.clear()
        leaving, self._held = join(self._settings, self._held, rows, events)
        self._number += 1
        self._save(JoinState(self._held, self._events_until, self._read), leaving)
        self._publish()
        label = self._settings.label
        positive = int(leaving[label].sum()) if len(leaving) else 0
        name = self._segment.name if len(leaving) else ""
        return Step(name, len(leaving), positive, self.held)

    def _new(self, kind: str, is_enough: Any) -> pl.DataFrame | None:
        """The rows of the next segments of a folder, until they are enough; None without any."""
        found: pl.DataFrame | None = None
        folder, progress = self._folders[kind], self._read[kind]
        while found is None or not is_enough(found):
            segment = folder.next(progress.position)
            if segment is None:
                break
            position = Position(segment.note.name, segment.note.rows, ended=True)
            examples = progress.examples + segment.note.rows
            progress = self._read[kind] = Progress(position, folder.consumed, examples)
            frame = segment.frame
            if kind == "events":  # other columns may be of any kind
                names = (self._settings.id, self._settings.timestamp)
                frame = frame.select(x for x in names if x in frame.columns)
            if found is not None:
                frame = pl.concat([found, as_before(frame, found, f"late labels: {kind}")])
            found = frame
        return found

    @property
    def _state(self) -> Path:
        return self._output / _STATES / f"{self._number:012d}"

    @property
    def _segment(self) -> Path:
        return self._output / f"{self._number:012d}.parquet"

    def _save(self, state: JoinState, leaving: pl.DataFrame) -> None:
        save(self._state, self._settings, state, leaving)

    def _publish(self) -> None:
        """Moves what leaves to its place, and deletes the states before this one."""
        publish(self._state, self._segment)
        for number in _numbers(self._state.parent):
            if number < self._number:
                delete_directory(self._state.with_name(f"{number:012d}"))

    def _load(self) -> None:
        """Goes on from the latest state, and publishes what a killed program hasn't."""
        if not (numbers := _numbers(self._output / _STATES)):
            return
        self._number = max(numbers)
        state = load(self._state, self._settings)
        self._held, self._events_until, self._read = state.held, state.events_until, state.read
        self._publish()


def _numbers(states: Path) -> list[int]:
    """The numbers of the states in a directory."""
    return [int(x.name) for x in states.iterdir() if x.name.isdecimal()]


@contextlib.contextmanager
def joined_folder(
    settings: LateLabels, rows: Path, events: Path, output: Path
) -> Iterator[JoinedFolder]:
    """Context in which this process alone joins two folders into a third one, which is made.

    Args:
        settings: way in which rows get their labels.
        rows: folder of rows without labels, as `Folder` reads it, with any columns.
        events: folder of events: ids and times.
        output: folder of what leaves, which ``train --stream`` reads.

    Raises:
        UserError: a folder isn't there, one is in another, the output is in use, or has files that
            another program made.
    """
    for name, directory in (("rows", rows), ("events", events)):
        if not directory.is_dir():
            raise UserError(f"{name}: expected a directory of segments, there is no {directory}")
    folders = [x.resolve() for x in (rows, events, output)]
    for own in folders:
        if any(own.is_relative_to(x) for x in folders if x is not own):
            raise UserError(
                f"output: expected three directories, none in another one, got {rows}, {events} "
                f"and {output}; give others"
            )
    states = output / _STATES
    try:
        if not states.is_dir() and output.is_dir() and any(output.iterdir()):
            raise UserError(
                f"output: expected a new directory, or one that join has made, got {output}, which "
                f"has other files; give another name"
            )
        with locked(states / "join.lock", f"directory {output}"):
            sweep(states)
            yield JoinedFolder(settings, rows, events, output)
    except OSError as error:
        raise UserError(f"output: cannot write {output}: {error}") from error
