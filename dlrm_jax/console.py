"""Lines for people, which are no reason to stop if nobody can read them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable


def status(text: str, error: bool = False, end: str = "\n") -> None:
    """Prints a line of progress, a note or an error, at once.

    The reader of a pipe may have gone and the disk of a log may be full. The work goes on, and what
    it makes is complete: an error here would say nothing to anyone.

    Args:
        text: the line.
        error: whether it is for standard error.
        end: text after the line.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # it was closed before the program began
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    with contextlib.suppress(OSError):
        try:
            print(text, end=end, file=stream, flush=True)
        except BrokenPipeError:  # what is left in the buffer would be an error at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Shows each text once, however often it is said."""
    said: set[str] = set()

    def say_once(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return say_once
