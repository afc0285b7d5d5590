"""A folder of labelled segments, made of a folder of rows and one of events as they come.

Each step joins some segments, and has its state in a directory of its own, which appears whole or
not at all: what is held, how far both folders were read, and the segment that leaves, which is
moved out of it. So each row leaves as often as it must, also if the program is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from dlrm_jax.console import once, status
from dlrm_jax.errors import UserError
from dlrm_jax.files import delete_directory
from dlrm_jax.locks import locked
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.join_state import JoinState, load, publish, save
from dlrm_jax.stream.late_labels import Held, LateLabels, join, no_rows, time_with, times_of
from dlrm_jax.stream.position import Position, Progress
from dlrm_jax.stream.row_clock import as_text, times_ahead
from dlrm_jax.stream.same_columns import as_before
from dlrm_jax.workspaces import sweep

_STATES = ".join"
_MANY = 1 << 16
"""Rows, or events ahead of them, of which a step takes no further segment."""
_SKEW = 86_400.0
"""Seconds that times may be ahead of this machine's: times of a zone may be written as UTC."""


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
        say: function that shows a line of text to the user.
    """

    def __init__(
        self,
        settings: LateLabels,
        rows: Path,
        events: Path,
        output: Path,
        say: Callable[[str], None] = status,
    ):
        self._settings, self._output, self._say = settings, output, once(say)
        self._window = round(settings.seconds * 1e6)
        self._number, self._held, self._events_until = 0, Held(), 0
        self._is_settled = settings.way == "wait"  # whether no event waits for later rows
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

    @property
    def missed(self) -> int:
        """Number of events that found no row in time, since the output was begun."""
        return self._held.missed

    def step(self) -> Step | None:
        """Joins what has come; None if that is nothing.

        Raises:
            UserError: a segment can't be read, see `Folder` and `join`, or nothing can be written.
        """
        limit = round((time.time() + self._settings.seconds + _SKEW) * 1e6)
        rows = self._new("rows", limit, lambda frame, _: len(frame) >= _MANY)
        if rows is None and self._held.rows is None:
            return None  # events alone: the columns of rows aren't known yet
        is_idle = rows is None
        if rows is None:
            rows = no_rows(self._held)
        now = time_with(self._settings, self._held, rows, limit)
        events = self._new_events(now, limit, is_idle)
        if events is None:
            if is_idle and self._is_settled:
                return None
            events = rows.clear()
        leaving, self._held = join(self._settings, self._held, rows, events, limit)
        self._is_settled = is_idle or self._settings.way == "wait"
        self._number += 1
        state = JoinState(self._held, self._events_until, self._read)
        self._save(state, leaving)
        self._publish()
        label = self._settings.label
        positive = int(leaving[label].sum()) if len(leaving) else 0
        name = self._segment.name if len(leaving) else ""
        return Step(name, len(leaving), positive, self.held)

    def _new_events(self, now: int, limit: int, is_idle: bool) -> pl.DataFrame | None:
        """The next events, as far as rows up to a time may need them, and some more.

        A segment whose earliest time is behind the windows is followed by those of later rows. With
        some more, events whose clock is ahead don't stop the reading.
        """
        until = now + self._window
        waiting = 0 if self._held.events is None else len(self._held.events)
        some = min(_MANY, self._settings.most_rows // 2)

        def is_enough(found: pl.DataFrame, last: pl.DataFrame) -> bool:
            times = times_of(self._settings, last, "events")
            # Earlier ones are of no open window, and later ones of a wrong clock.
            times = times.filter((times > now - self._window) & (times <= limit))
            self._events_until = int(times.min() or 0)  # pyright: ignore[reportArgumentType]
            return self._events_until > until and waiting + len(found) >= some

        if self._events_until > until and waiting >= some:
            if is_idle:
                first = as_text(self._events_until)
                self._say(
                    f"events: {waiting:,} are held; those from {first} on are read when "
                    f"rows, which are at {as_text(now)}, get there"
                )
            return None
        return self._new("events", limit, is_enough)

    def _new(
        self, kind: str, limit: int, is_enough: Callable[[pl.DataFrame, pl.DataFrame], bool]
    ) -> pl.DataFrame | None:
        """The rows of the next segments of a folder; None without any.

        Args:
            kind: folder, "rows" or "events".
            limit: latest possible time.
            is_enough: function that says whether the rows, of which the last segment's are given as
                well, are enough.
        """
        found: pl.DataFrame | None = None
        last = pl.DataFrame()
        folder, progress = self._folders[kind], self._read[kind]
        while found is None or not is_enough(found, last):
            segment = folder.next(progress.position)
            if segment is None:
                break
            position = Position(segment.note.name, segment.note.rows, ended=True)
            examples = progress.examples + segment.note.rows
            progress = self._read[kind] = Progress(position, folder.consumed, examples)
            last = segment.frame
            times = times_of(self._settings, last, f"{kind} of {segment.place}")
            if ahead := times_ahead(times, self._window, limit):
                self._say(f"warning: {kind} of {segment.place}: {ahead}")
            if kind == "events":  # other columns may be of any kind
                last = last.select(self._settings.id, self._settings.timestamp)
            if found is not None:
                last = as_before(last, found, f"late labels: {kind}")
                found = pl.concat([found, last])
            else:
                found = last
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
    settings: LateLabels,
    rows: Path,
    events: Path,
    output: Path,
    say: Callable[[str], None] = status,
) -> Iterator[JoinedFolder]:
    """Context in which this process alone joins two folders into a third one, which is made.

    Args:
        settings: way in which rows get their labels.
        rows: folder of rows without labels, as `Folder` reads it, with any columns.
        events: folder of events: ids and times.
        output: folder of what leaves, which ``train --stream`` reads.
        say: function that shows a line of text to the user.

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
            yield JoinedFolder(settings, rows, events, output, say)
    except OSError as error:
        raise UserError(f"output: cannot write {output}: {error}") from error
