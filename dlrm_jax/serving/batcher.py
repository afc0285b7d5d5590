"""Micro-batches: requests that wait while the model works are answered together.

There is no delay to tune. While one batch is computed, requests queue up, and the next batch takes
as many of them as fit. Batches are small if there is little to do, and large under load.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """There is no place for a request.

    Attributes:
        retry_after: seconds after which there should be.
    """

    def __init__(self, retry_after: float):
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class DeadlineError(Exception):
    """A request waited for longer than its deadline."""


class ClosedError(Exception):
    """The batcher takes no more requests."""


class Answer(Future[Result]):
    """The future result of a request.

    Attributes:
        waited: seconds that the request waited; known with the result.
        computed: seconds of the computation of its batch; known with the result.
    """

    waited = computed = 0.0


@dataclasses.dataclass(frozen=True)
class _Waiting(Generic[T, Result]):
    payload: T
    rows: int
    came: float
    deadline: float
    future: Answer[Result]


@dataclasses.dataclass(frozen=True)
class BatchTimes:
    """What a batch took.

    Attributes:
        rows: rows of the batch.
        requests: requests that it answers.
        waited: seconds that each request waited, in their order.
        seconds: seconds of the computation.
    """

    rows: int
    requests: int
    waited: Sequence[float]
    seconds: float


def _closed(_: Sequence[Any]) -> Sequence[Any]:
    raise ClosedError


class Batcher(Generic[T, Result]):
    """A bounded queue of requests, and a thread that answers them in batches, in order.

    Args:
        answer: function of the payloads of a batch that gives a result for each, or an exception
            for one that can't be answered.
        most_rows: most rows of a batch; a request of more is a batch of its own.
        queued_rows: most rows that wait.
        done: called after each batch, with what it took.
        clock: seconds, ascending.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[T]], Sequence[Result | Exception]],
        most_rows: int,
        queued_rows: int,
        done: Callable[[BatchTimes], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._answer = answer
        self._most_rows, self._queued_rows = most_rows, queued_rows
        self._done, self._clock = done, clock
        self._changed = threading.Condition()
        self._queue: collections.deque[_Waiting[T, Result]] = collections.deque()
        self._rows = 0  # of the queue
        self._seconds_per_row = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting_rows(self) -> int:
        """The number of rows that wait."""
        return self._rows

    def submit(self, payload: T, rows: int, timeout: float) -> Answer[Result]:
        """Queues a request.

        Args:
            payload: argument of `answer`.
            rows: number of rows of the request.
            timeout: seconds after which no answer is wanted.

        Returns:
            The future result. If it is cancelled, the request isn't computed.

        Raises:
            QueueFullError: too many rows wait.
            ClosedError: the batcher is closed.
        """
        future: Answer[Result] = Answer()
        with self._changed:
            if self._closed:
                raise ClosedError
            if self._rows + rows > self._queued_rows:
                self._drop_cancelled()
            if self._queue and self._rows + rows > self._queued_rows:
                raise QueueFullError(max(1.0, self._rows * self._seconds_per_row))
            now = self._clock()
            self._queue.append(_Waiting(payload, rows, now, now + timeout, future))
            self._rows += rows
            self._changed.notify()
        return future

    def rest(self, seconds: float) -> None:
        """Waits until a request waits, but no longer than this."""
        with self._changed:
            if not self._queue and not self._closed:
                self._changed.wait(seconds)

    def close(self) -> None:
        """Takes no more requests, and returns when those that wait are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        # They refer to what holds this batcher, which holds mapped files: it is to go with the last
        # request, not when Python looks for cycles.
        self._answer, self._done = _closed, lambda _: None

    def _drop_cancelled(self) -> None:
        """Makes the places free of requests that nobody waits for any more."""
        left = [x for x in self._queue if not x.future.cancelled()]
        self._queue = collections.deque(left)
        self._rows = sum(x.rows for x in left)

    def _run(self) -> None:
        while taken := self._take():
            now = self._clock()
            live = []
            for each in taken:
                if not each.future.set_running_or_notify_cancel():
                    continue
                if now > each.deadline:
                    each.future.set_exception(DeadlineError())
                else:
                    live.append(each)
            if live:
                self._compute(live, now)

    def _take(self) -> list[_Waiting[T, Result]]:
        """The requests of the next batch; none after the last."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            taken: list[_Waiting[T, Result]] = []
            rows = 0
            while self._queue and (not taken or rows + self._queue[0].rows <= self._most_rows):
                taken.append(self._queue.popleft())
                rows += taken[-1].rows
            self._rows -= rows
            return taken

    def _compute(self, live: Sequence[_Waiting[T, Result]], now: float) -> None:
        try:
            results = self._answer([x.payload for x in live])
        except BaseException as error:  # whatever it is, it mustn't end the thread
            results = [RuntimeError(f"{type(error).__name__}: {error}")] * len(live)
        seconds = self._clock() - now
        for each, result in zip(live, results, strict=True):
            each.future.waited, each.future.computed = now - each.came, seconds
            if isinstance(result, Exception):
                each.future.set_exception(result)
            else:
                each.future.set_result(result)
        rows = sum(x.rows for x in live)
        self._seconds_per_row += 0.2 * (seconds / max(rows, 1) - self._seconds_per_row)
        self._done(BatchTimes(rows, len(live), [now - x.came for x in live], seconds))
