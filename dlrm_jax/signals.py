"""SIGTERM, Ctrl-C and SIGHUP: the first stops a program where that is safe, the second at once.

SIGHUP is that of a closed terminal. Shell and system may send it twice, and SIGTERM beside it. So
it never counts as one of the two: after it, too, the second other signal ends a program at once.
``nohup`` ignores it.

Python runs a signal's handler between two instructions of the main thread. If JAX is below that
instruction, an exception may come up in a callback of the compiler, where it ends the process or
gets lost. There the request waits for the next `check`. For the same reason the second signal ends
a program without an exception.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that ask a program to stop."""

_LIBRARY = "jax"

_previous: dict[int, Any] = {}  # handlers before `handled`; none outside of it
_received = 0  # the number of the first signal; 0 if there was none
_deferring = False


class Interrupted(KeyboardInterrupt):
    """A request to stop. `KeyboardInterrupt` passes through code that catches every `Exception`.

    Args:
        number: number of the signal.
        saved: whether all work is saved.
    """

    def __init__(self, number: int, saved: bool = False):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.saved = saved


def end_at_once() -> None:
    """Makes a signal end the process with one line. A program calls it before its other imports.

    A signal that is ignored stays ignored. One that waited because of `kept_for_child` comes now.
    """
    for number in SIGNALS:
        if not _is_ignored(number):
            signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def kept_for_child() -> Iterator[None]:
    """Context in which this thread gets no signals, nor do processes that it starts or becomes.

    These get them in `end_at_once`. Before that, Python would end with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Context in which the first signal raises `Interrupted`: at once, in `check`, or at its end.

    The second one does what signals did before; after `end_at_once`, it ends the process. The
    context does nothing within another one, and in threads, which get no signals.
    """
    global _received
    if _previous or not _in_main_thread():
        yield
        return
    for number in SIGNALS:
        if not _is_ignored(number):
            _previous[number] = signal.signal(number, _on_signal)
    try:
        yield
        check()
    finally:
        try:
            _put_back()
        finally:  # a signal may come here, too
            _previous.clear()
            _received = 0


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Context in which signals are recorded. At its end they raise what they would have raised.

    Yields:
        A function that returns the number of the first signal; 0 if there was none.

    Raises:
        Interrupted: a signal came, and the context ended without another error.
    """
    global _deferring
    if not _in_main_thread():
        yield lambda: 0
        return
    check()
    with handled():
        outer, _deferring = _deferring, True
        try:
            yield lambda: _received
        finally:
            _deferring = outer
        check()


def check() -> None:
    """Raises `Interrupted` if a signal has come; not in a `deferred` context."""
    if _received and not _deferring:
        raise Interrupted(_received)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN  # as a shell's background jobs have it


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _put_back() -> None:
    for number, handler in _previous.items():
        signal.signal(number, handler)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    if number == signal.SIGHUP and _received:  # it came while that one was handled
        return
    after_hangup = _received == signal.SIGHUP
    _received = number
    # Python runs pending handlers in the order of their numbers, SIGHUP's first: were the others
    # put back by it, a SIGTERM that came beside it would end the process.
    if number != signal.SIGHUP:
        _put_back()
        if _previous.get(number) is _end:
            signal.signal(number, signal.SIG_DFL)  # ends it in the midst of an instruction, too
    # Shells, kernels and systemd send it besides; until the context ends it counts for nothing.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if after_hangup:  # that one has asked for the same already
        return
    if _deferring:
        return
    if not _in_library(frame):
        raise Interrupted(number)
    _say(f"{signal.Signals(number).name}: stopping after this computation; again: at once")


def end_process(number: int, more: str = "") -> NoReturn:
    """Ends the process with one line.

    Args:
        number: number of the signal that asks for it.
        more: end of the line.
    """
    _say(f"stopped by {signal.Signals(number).name}{more}")
    os._exit(128 + number)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    end_process(number)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # raised here, below JAX, it would end the process
        os.write(2, f"{line}\n".encode())  # not by `print`, in which the signal may have come


def _in_library(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] == _LIBRARY:
            return True
        frame = frame.f_back
    return False
