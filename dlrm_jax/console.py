"""Lines for people, which are no reason to stop if nobody can read them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator


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


@contextlib.contextmanager
def telling_time(what: str, first: float = 5) -> Iterator[None]:
    """Context that says on standard error that work goes on, if it takes long.

    Args:
        what: description of the work.
        first: seconds until the first line. The time to the next one doubles with each.
    """
    done = threading.Event()

    def tell() -> None:
        begun, pause = time.monotonic(), first
        while not done.wait(pause):
            status(f"{what}: {time.monotonic() - begun:.0f} s so far", error=True)
            pause *= 2

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Shows each text once, however often it is said."""
    said: set[str] = set()

    def say_once(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return say_once
