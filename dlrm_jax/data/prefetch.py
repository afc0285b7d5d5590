"""Reads batches and places them on devices in a thread, ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

Host = TypeVar("Host")
Placed = TypeVar("Placed")


class Prefetch(Generic[Host, Placed], Iterator[Placed]):
    """An iterator over placed batches, filled by a thread; a context manager.

    Args:
        batches: host batches in the order of their use. Only the thread advances them.
        put: function that places a batch on devices, called in the thread. It must not start a
            computation: on emulated devices, two with collectives at the same time can hang.
        ahead: number of placed batches that wait; the thread holds one more.

    Raises:
        Exception: the batches or `put` raised it; it is raised again at the same place.
    """

    def __init__(self, batches: Iterable[Host], put: Callable[[Host], Placed], ahead: int = 2):
        self._batches = batches
        self._put = put
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(ahead)
        self._next: tuple[Any, BaseException | None] | None = None  # taken by `peek`
        self._closed = threading.Event()
        # A daemon: an exit that skips `close`, such as a second Ctrl-C, doesn't wait for it.
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Placed:
        if self._closed.is_set():
            raise StopIteration
        placed, end = self._next or self._ready.get()
        self._next = None
        if end is None:
            return placed
        self.close()
        raise end

    def poll(self, seconds: float, default: Placed) -> Placed:
        """The next batch; the default if there is none after some seconds.

        Raises:
            StopIteration: there are no more batches.
        """
        if not self._closed.is_set():
            try:
                self._next = self._next or self._ready.get(timeout=seconds)
            except queue.Empty:
                return default
        return next(self)

    def peek(self, default: Placed) -> Placed:
        """The batch that `next` is going to return; the default if it is going to raise."""
        if self._closed.is_set():
            return default
        self._next = self._next or self._ready.get()
        placed, end = self._next
        return placed if end is None else default

    def close(self) -> None:
        """Ends the thread after its current batch and drops the waiting batches."""
        self._closed.set()
        # Makes room for the batch that the thread is about to hand over. No other follows.
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join()

    def __enter__(self) -> Prefetch[Host, Placed]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _fill(self) -> None:
        end: BaseException = StopIteration()
        try:
            for batch in self._batches:
                placed = self._put(batch)
                if self._closed.is_set():
                    return
                self._ready.put((placed, None))
        except BaseException as error:  # raised again by __next__
            end = error
        if not self._closed.is_set():
            self._ready.put((None, end))
