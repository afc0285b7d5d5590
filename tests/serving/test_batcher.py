"""Requests are answered together, in order, in time, and never more than there is room for."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

from dlrm_jax.serving.batcher import (
    Batcher,
    BatchTimes,
    ClosedError,
    DeadlineError,
    QueueFullError,
)


class Gate:
    """Answers with twice each number, as soon as it is open; negative ones can't be answered."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.open.wait(20)
        return [2 * x if x >= 0 else ValueError(str(x)) for x in numbers]


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


def blocked(gate: Gate, **options: Any):
    """A batcher that computes a first request, so that others wait."""
    given: dict[str, Any] = {"most_rows": 4, "queued_rows": 10}
    batcher = Batcher(gate, **given | options)
    first = batcher.submit(0, 1, 20)
    assert gate.begun.wait(20)
    return batcher, first


def test_what_waits_is_answered_together_and_in_order(gate):
    times: list[BatchTimes] = []
    batcher, first = blocked(gate, done=times.append, queued_rows=20)
    futures = [batcher.submit(i, rows, 20) for i, rows in ((1, 1), (2, 3), (-3, 1), (4, 9))]
    assert batcher.waiting_rows == 14
    gate.open.set()
    assert [first.result(20), futures[0].result(20), futures[1].result(20)] == [0, 2, 4]
    with pytest.raises(ValueError, match="-3"):
        futures[2].result(20)
    assert futures[3].result(20) == 8
    batcher.close()
    assert gate.batches == [[0], [1, 2], [-3], [4]]
    assert [(x.rows, x.requests) for x in times] == [(1, 1), (4, 2), (1, 1), (9, 1)]


def test_there_is_room_for_so_many_rows(gate):
    batcher, _ = blocked(gate)
    waiting = [batcher.submit(i, 5, 20) for i in (1, 2)]
    with pytest.raises(QueueFullError) as caught:
        batcher.submit(3, 1, 20)
    assert caught.value.retry_after >= 1
    assert waiting[0].cancel()
    later = batcher.submit(4, 5, 20)
    gate.open.set()
    assert (waiting[1].result(20), later.result(20)) == (4, 8)
    with pytest.raises(CancelledError):
        waiting[0].result(20)
    batcher.close()
    assert gate.batches == [[0], [2], [4]]


def test_an_alone_request_of_any_size_is_taken(gate):
    batcher, _ = blocked(gate)
    large = batcher.submit(1, 1000, 20)
    gate.open.set()
    assert large.result(20) == 2
    batcher.close()


def test_what_waits_too_long_is_not_computed(gate):
    now = [0.0]
    batcher, _ = blocked(gate, clock=lambda: now[0])
    late, patient = batcher.submit(1, 1, 5), batcher.submit(2, 1, 50)
    now[0] = 6.0
    gate.open.set()
    with pytest.raises(DeadlineError):
        late.result(20)
    assert patient.result(20) == 4
    batcher.close()
    assert gate.batches == [[0], [2]]


def test_closed_it_answers_what_waits_and_takes_no_more(gate):
    batcher, first = blocked(gate)
    waiting = batcher.submit(1, 1, 20)
    gate.open.set()
    batcher.close()
    assert (first.result(0), waiting.result(0)) == (0, 2)
    with pytest.raises(ClosedError):
        batcher.submit(2, 1, 20)


def test_an_answer_that_fails_fails_its_batch_alone():
    def answer(numbers):
        if numbers == [1]:
            raise RuntimeError("broken")
        return numbers

    batcher = Batcher(answer, most_rows=1, queued_rows=10)
    first, second = batcher.submit(1, 1, 20), batcher.submit(2, 1, 20)
    with pytest.raises(RuntimeError, match="broken"):
        first.result(20)
    assert second.result(20) == 2
    batcher.close()
