"""How far a run has read its stream, as its checkpoints note it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Position:
    """A place between two rows of a stream.

    Attributes:
        segment: name of the segment of the row before the place.
        row: number of rows of this segment before the place.
        ended: whether the segment has no further rows.
    """

    segment: str
    row: int
    ended: bool

    def __str__(self) -> str:
        return f"{self.segment}, " + ("its end" if self.ended else f"row {self.row:,}")


@dataclasses.dataclass(frozen=True)
class Consumed:
    """A segment whose rows were read.

    Attributes:
        name: name of the segment.
        rows: number of its rows.
        size: its size, in bytes.
        checksum: checksum of its bytes.
        changed: time of its last change, in nanoseconds since 1970; 0 if it can't change.
    """

    name: str
    rows: int
    size: int
    checksum: str
    changed: int = 0


@dataclasses.dataclass(frozen=True)
class Progress:
    """The part of a stream that a state was trained on.

    Attributes:
        position: place behind the last row; None before the first one.
        segments: segments up to the position's, by name, but for those that had left the source.
        examples: number of rows before the position, of all segments.
        time: latest time of a row that was trained on, in whole seconds since 1970; 0 before 1970,
            without a timestamp, and of earlier versions.
    """

    position: Position | None = None
    segments: tuple[Consumed, ...] = ()
    examples: int = 0
    time: int = 0

    def to_json(self) -> dict[str, Any]:
        """The progress as a checkpoint's metadata have it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, noted: Mapping[str, Any]) -> Progress:
        """Reads what `to_json` gave.

        Raises:
            UserError: it is something else.
        """
        try:
            position = noted["position"]
            segments = tuple(Consumed(**each) for each in noted["segments"])
            place = position and Position(**position)
            found = cls(place, segments, noted["examples"], noted.get("time", 0))
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"expected a checkpoint of a run on a stream, which notes its position; got "
                f"{str(noted)[:100]} ({error!r}); give another --workdir"
            ) from error
        return found
