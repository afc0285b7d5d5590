"""Labels that come later than their rows: clicks after minutes, purchases after days.

Two ways, for rows that come without a label and for events that name a row by its id:

* *wait*: a row is held for a window, and then leaves with label 1 if its event has come, else 0.
  Labels are right up to events later than the window; a model is as old as the window.
* *correct*: a row leaves at once with label 0, and once more with label 1 when its event comes.
  A model is fresh, and its log has all rows as negative ones besides the positive ones: with a
  share p of positive rows, a share p / (1 + p) of what leaves is positive. The loss
  ``fake_negative_weighted`` weights examples so that a model learns p all the same (Ktena et al.,
  2019, "Addressing delayed feedback for continuous training with neural networks in CTR
  prediction", arXiv 1907.06558).

In both, rows are in memory for a window, up to a number that is an error.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import polars as pl

from dlrm_jax.data.preprocessing.log_times import as_times
from dlrm_jax.errors import UserError
from dlrm_jax.stream.row_clock import time_of_most
from dlrm_jax.stream.row_events import OWN, TIME, check_ids, match
from dlrm_jax.stream.same_columns import as_before, cast_exactly

_LABELLED = "__labelled"  # whether the event has come
_ORDER = "__order"
_OWN = (*OWN, _LABELLED, _ORDER)
_MOST_SECONDS = 100 * 366 * 86_400


@dataclasses.dataclass(frozen=True)
class LateLabels:
    """How rows get their labels.

    Attributes:
        id: name of the column that names a row, in rows and events.
        timestamp: name of the column of times, in both: of any type that schemas take but text.
        label: name of the column that rows get, which they don't have before.
        seconds: length of the window, up to 100 years. An event that is later than its row by
            more, or earlier by as much, is left out.
        most_rows: number of rows and of events that may be in memory.
        way: ``"wait"`` or ``"correct"``.

    Raises:
        UserError: a number is out of range, or a name isn't possible.
    """

    id: str
    timestamp: str
    label: str
    seconds: float
    most_rows: int = 10_000_000
    way: Literal["wait", "correct"] = "wait"

    def __post_init__(self) -> None:
        for name in ("seconds", "most_rows"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.seconds > _MOST_SECONDS:
            raise UserError(
                f"seconds: expected at most {_MOST_SECONDS:,}, which are 100 years, got "
                f"{self.seconds:g}; give fewer"
            )
        names = {"id": self.id, "timestamp": self.timestamp, "label": self.label}
        if own := [name for name, column in names.items() if column in _OWN]:
            raise UserError(
                f"{own[0]}: expected a column with a name of its own, got {names[own[0]]!r}, which "
                f"join uses itself; rename it"
            )
        if len({*names.values()}) < len(names):
            raise UserError(
                f"id, timestamp and label: expected three columns, got {', '.join(names.values())}"
            )
        if self.way not in ("wait", "correct"):
            raise UserError(f"way: expected wait or correct, got {self.way!r}")


@dataclasses.dataclass(frozen=True)
class Held:
    """What a join has in memory: plain frames, so that it can be saved.

    Attributes:
        rows: rows whose window is open, in the order in which they came; None before the first.
        events: events without a row so far; None before the first.
        now: latest time of a row that isn't ahead, see `time_of_most`, in microseconds since 1970.
        missed: number of events so far that found no row in time.
    """

    rows: pl.DataFrame | None = None
    events: pl.DataFrame | None = None
    now: int = 0
    missed: int = 0


def join(
    settings: LateLabels,
    held: Held,
    rows: pl.DataFrame,
    events: pl.DataFrame,
    limit: int | None = None,
) -> tuple[pl.DataFrame, Held]:
    """Joins what has come to what is held. It depends on its arguments alone.

    Time is that of the rows: a window ends when a row comes that is so much later, and isn't ahead
    of the others. An id may come again when the window of its row has ended, and an event is that
    of the first row to whose window it belongs.

    Args:
        settings: see the class.
        held: rows that earlier calls held; ``Held()`` at first.
        rows: rows that have come, without a label. Their columns are those of the first ones, in
            any order and in any type that has the values; further ones are left out.
        events: events that have come: ids and times, of which other columns are left out. One may
            come before its row.
        limit: latest time that a row can have, in microseconds since 1970; later ones end no
            window. None if that isn't known.

    Returns:
        Rows that leave, with their label, in the order of time: for ``correct``, of the rows that
        have come and of the events that correct them. Events later than the rows wait for such
        ones, or for a call without any. And what is held now.

    Raises:
        UserError: a column is missing or there already, a time or an id is malformed, values don't
            fit the type of the first rows, two rows within a window have one id, or more rows or
            events are held than may be.
    """
    window = round(settings.seconds * 1e6)
    if own := [name for name in rows.columns if name in _OWN]:
        raise UserError(
            f"late labels: rows have a column {own[0]!r}, a name that join uses itself; rename it"
        )
    came = _checked(settings, rows, "rows")
    if settings.label in rows.columns:
        raise UserError(
            f"late labels: rows have a column {settings.label!r} already, and events decide it; "
            f"drop it"
        )
    came = came.with_columns(pl.lit(False).alias(_LABELLED))
    before = held.rows
    if before is not None:
        unknown = [x for x, kind in before.schema.items() if kind == pl.Null and x in came.columns]
        before = before.cast({x: came.schema[x] for x in unknown})
        came = as_before(came, before, "late labels: rows")
    own = _checked(settings, events, "events").select(settings.id, TIME)
    own = _with_ids_of(settings, own, came)
    known = came if before is None else pl.concat([before, came])
    pending = own if held.events is None else pl.concat([held.events.cast(own.schema), own])
    check_ids(known, settings.id, window)
    now = time_with(settings, held, rows, limit)

    is_due = pl.lit(True)
    if settings.way == "correct" and len(came):  # later ones leave among later rows
        is_due = pl.col(TIME) <= now
    due, later = pending.filter(is_due), pending.filter(~is_due)
    times, is_matched = match(known, due, settings.id, window)
    is_new = times.is_not_null() & ~known[_LABELLED]
    corrected = known.with_columns(times.alias(_ORDER)).filter(is_new)
    known = known.with_columns((known[_LABELLED] | is_new).alias(_LABELLED))
    # An event waits for its row as long as a row for its event.
    unmatched = due.filter(~is_matched)
    waiting = unmatched.filter(pl.col(TIME) + window > now)
    missed = held.missed + len(unmatched) - len(waiting)
    pending = pl.concat([waiting, later])

    is_open = pl.col(TIME) + window > now
    if settings.way == "wait":
        leaving = _labelled(settings, known.filter(~is_open).sort(TIME, maintain_order=True))
    else:
        fresh = came.with_columns(pl.col(TIME).alias(_ORDER))
        order = pl.max_horizontal(_ORDER, TIME)  # no row leaves after its correction
        corrected = corrected.with_columns(order, pl.lit(True).alias(_LABELLED))
        leaving = pl.concat([fresh, corrected]).sort(_ORDER, maintain_order=True).drop(_ORDER)
        leaving = _labelled(settings, leaving)
    after = Held(known.filter(is_open), pending, now, missed)
    for name, frame in (("rows", after.rows), ("events without a row", after.events)):
        if frame is not None and len(frame) > settings.most_rows:
            raise UserError(
                f"late labels: {len(frame):,} {name} are within the window of "
                f"{settings.seconds:g} s, expected at most {settings.most_rows:,}; make seconds "
                f"smaller, or most_rows larger"
            )
    return leaving, after


def last_rows(settings: LateLabels, held: Held) -> pl.DataFrame:
    """The rows that are held, with the labels so far, at the end of a log; None leave twice."""
    if held.rows is None or settings.way == "correct":
        return pl.DataFrame()
    return _labelled(settings, held.rows.sort(TIME, maintain_order=True))


def times_of(settings: LateLabels, frame: pl.DataFrame, what: str) -> pl.Series:
    """The times of rows or events, in microseconds since 1970.

    Args:
        settings: see the class.
        frame: rows or events.
        what: name of the frame in messages, such as "rows".

    Raises:
        UserError: a column is missing, or a time or an id is malformed.
    """
    return _checked(settings, frame, what)[TIME]


def time_with(settings: LateLabels, held: Held, rows: pl.DataFrame, limit: int | None) -> int:
    """The time of a log after rows that have come, see `Held` and `join`.

    Raises:
        UserError: a column is missing, or a time or an id is malformed.
    """
    # Earlier versions took that of a row that was ahead.
    before = held.now if limit is None or held.now <= limit else 0
    window = round(settings.seconds * 1e6)
    return max(before, time_of_most(times_of(settings, rows, "rows"), window, limit))


def no_rows(held: Held) -> pl.DataFrame:
    """A frame without rows, with the columns of those that have come."""
    assert held.rows is not None
    return held.rows.drop(TIME, _LABELLED).clear()


def _with_ids_of(settings: LateLabels, events: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The events with ids of the rows' type."""
    found, expected = events[settings.id].dtype, rows[settings.id].dtype
    ids = cast_exactly(events[settings.id], expected)
    if ids is None:
        raise UserError(
            f"late labels: {settings.id} is {expected} in rows, and {found} in events; write both "
            f"in one type"
        )
    return events.with_columns(ids)


def _labelled(settings: LateLabels, rows: pl.DataFrame) -> pl.DataFrame:
    label = pl.col(_LABELLED).cast(pl.Int8).alias(settings.label)
    return rows.with_columns(label).drop(TIME, _LABELLED)


def _checked(settings: LateLabels, frame: pl.DataFrame, what: str) -> pl.DataFrame:
    """A frame with its times in microseconds."""
    for name in (settings.id, settings.timestamp):
        if name not in frame.columns:
            raise UserError(
                f"late labels: {what} have no column {name!r}; their columns are "
                f"{', '.join(frame.columns)}"
            )
    if frame[settings.timestamp].dtype == pl.String:
        raise UserError(
            f"late labels: {what}: expected times or numbers in {settings.timestamp}, got text; "
            f"write them as times"
        )
    times = as_times(frame[settings.timestamp], seconds=True)
    wrong = times.is_null() | frame[settings.id].is_null()
    if wrong.any():
        row = wrong.arg_max() or 0
        raise UserError(
            f"late labels: {what}, row {row + 1}: expected an id and a time, got "
            f"{settings.id} {frame[settings.id][row]!r} and {settings.timestamp} "
            f"{frame[settings.timestamp][row]!r}"
        )
    return frame.with_columns(times.to_physical().cast(pl.Int64).alias(TIME))
