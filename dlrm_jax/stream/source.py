"""What a stream comes from: a folder, or a broker that is plugged in."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import polars as pl

from dlrm_jax.errors import UserError
from dlrm_jax.stream.position import Consumed, Position


class UnreachableError(UserError):
    """A source doesn't answer. It may again, so that a run waits for a while."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a log that doesn't change any more.

    Attributes:
        place: description for messages, such as the path of its file.
        note: name, number of rows, size and checksum. Names ascend along the stream.
        frame: rows; columns that nothing reads may be missing.
        ends: number of rows up to the end of each message that the segment is made of; none if it
            is a whole by itself.
        note_of: function that gives the note of a message by its number. A position in the
            segment is one in a message.
        places: descriptions of the messages.
    """

    place: str
    note: Consumed
    frame: pl.DataFrame
    ends: tuple[int, ...] = ()
    note_of: Callable[[int], Consumed] | None = None
    places: tuple[str, ...] = ()

    def position(self, row: int) -> tuple[Position, Consumed]:
        """The place behind so many rows, and the note of what its last row is in.

        Args:
            row: number of rows, at least 1.
        """
        if not self.note_of:
            return Position(self.note.name, row, row == self.note.rows), self.note
        number = bisect.bisect_left(self.ends, row)
        note = self.note_of(number)
        own = row - (self.ends[number] - note.rows)
        return Position(note.name, own, own == note.rows), note

    def of_messages(self) -> Iterator[Segment]:
        """Each message by itself, for errors that name it."""
        for place, end, number in zip(self.places, self.ends, itertools.count()):
            assert self.note_of
            note = self.note_of(number)
            yield Segment(place, note, self.frame[end - note.rows : end])


@runtime_checkable
class Stoppable(Protocol):
    """A source whose `next` waits for other processes."""

    def stop(self) -> None:
        """Ends a `next` that waits, in any thread; none may follow."""
        ...


@runtime_checkable
class Source(Protocol):
    """A stream of segments. One thread at a time calls it."""

    @property
    def consumed(self) -> tuple[Consumed, ...]:
        """The segments that it has given and that could still be found changed, by name.

        None of a source whose segments are messages: a position has the note of its own.
        """
        ...

    def next(self, after: Position | None) -> Segment | None:
        """The segment of the first row behind a position.

        It is the position's own if that isn't read to its end, and the one of the next name
        otherwise.

        Args:
            after: a position; None for the beginning of the stream.

        Returns:
            None if the segment isn't there yet. A source may wait for a second at most.

        Raises:
            UnreachableError: the source doesn't answer.
            UserError: the segment can't be read, or what was read before the position is no longer
                what it was.
        """
        ...
