"""A limit of the lines a second that clients can cause in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_MOST = 100


class LineLimit(logging.Filter):
    """Lets 100 lines a second pass; the next one, or `end`, says how many were left out.

    Args:
        clock: seconds, ascending.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._second = self._written = self._left_out = 0

    def has_room(self) -> bool:
        """Whether one more may be written; it counts."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        has_room = self._written <= _MOST
        self._left_out += not has_room
        return has_room

    def left_out(self) -> dict[str, int]:
        """The field of a record that says how many were left out since the last; none for 0."""
        found, self._left_out = self._left_out, 0
        return {"left_out": found} if found else {}

    def end(self, logger: logging.Logger) -> None:
        """Writes how many were left out since the last line, as no other will follow.

        Args:
            logger: logger of the lines.
        """
        if fields := self.left_out():
            self._written = 0  # this one has room
            logger.warning("lines were left out", extra={"fields": fields})

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether there is room for a record, which gets the field of those left out."""
        if not self.has_room():
            return False
        record.__dict__["fields"] = record.__dict__.get("fields", {}) | self.left_out()
        return True
