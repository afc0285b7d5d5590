"""What a stream comes from: a folder, or a broker that is plugged in."""

from __future__ import annotations

import dataclasses
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
    """

    place: str
    note: Consumed
    frame: pl.DataFrame


@runtime_checkable
class Source(Protocol):
    """A stream of segments. One thread at a time calls it."""

    @property
    def consumed(self) -> tuple[Consumed, ...]:
        """The segments that it has given and that could still be found changed, by name."""
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
