import threading
import time

import numpy as np
import pytest
from numbered import numbered

from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.data.prefetch import Prefetch

BATCHES = TrainBatches(numbered(40), 4, 0)


def first(count):
    return (BATCHES[step] for step in range(count))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_batches_come_placed_and_in_order():
    with Prefetch(first(30), lambda batch: ("placed", batch.labels)) as placed:
        seen = list(placed)
    assert [where for where, _ in seen] == ["placed"] * 30
    for step, (_, labels) in enumerate(seen):
        np.testing.assert_array_equal(labels, BATCHES[step].labels)
    assert not threads()


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_it_runs_ahead_by_a_bounded_number(ahead):
    put = []
    with Prefetch(first(30), put.append, ahead) as placed:
        wait_for(lambda: len(put) == ahead + 1)
        time.sleep(0.02)
        assert len(put) == ahead + 1
        next(placed)
        wait_for(lambda: len(put) == ahead + 2)


class SourceError(Exception):
    pass


def test_the_next_batch_can_be_seen_before_its_turn():
    with Prefetch(first(2), lambda batch: batch.labels[0]) as placed:
        expected = [BATCHES[step].labels[0] for step in range(2)]
        assert [placed.peek(None), placed.peek(None), next(placed)] == [*expected[:1] * 3]
        assert [next(placed), placed.peek(None)] == [expected[1], None]
        assert next(placed, "end") == "end"
        assert placed.peek(None) is None


def test_an_error_that_was_seen_before_its_turn_comes_in_its_turn():
    def source():
        yield BATCHES[0]
        raise SourceError

    with Prefetch(source(), lambda batch: batch) as placed:
        batch = next(placed)
        assert placed.peek(batch) is batch
        with pytest.raises(SourceError):
            next(placed)


def failing(count):
    yield from first(count)
    raise SourceError("the disk")


def test_an_error_of_the_source_comes_after_the_batches_before_it():
    with Prefetch(failing(5), lambda batch: batch) as placed:
        for _ in range(5):
            next(placed)
        with pytest.raises(SourceError, match="the disk"):
            next(placed)
        assert not threads()
        with pytest.raises(StopIteration):
            next(placed)


def test_an_error_of_put_comes_out():
    def put(batch):
        raise MemoryError(f"{len(batch.labels)} examples")

    with Prefetch(first(5), put) as placed, pytest.raises(MemoryError, match="4 examples"):
        next(placed)
    assert not threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("used", [0, 1, 7])
def test_leaving_in_the_middle_ends_the_thread(error, used):
    placed = Prefetch(first(1000), lambda batch: batch, 1)

    def loop():
        with placed:
            for _ in range(used):
                next(placed)
            raise error

    with pytest.raises(error):
        loop()
    assert not threads()
    with pytest.raises(StopIteration):
        next(placed)


def test_closing_while_the_thread_waits_for_room_or_works():
    for delay in (0, 0, 0, 0.001, 0.005):
        for ahead in (1, 2):
            prefetch = Prefetch(first(1000), lambda batch: batch, ahead)
            time.sleep(delay)
            prefetch.close()
            prefetch.close()
            assert not threads()


def test_no_batches():
    with Prefetch(first(0), lambda batch: batch) as placed:
        assert list(placed) == []


def test_a_batch_that_isnt_there_yet_is_waited_for_a_while():
    come = threading.Event()

    def source():
        yield 1
        come.wait(10)
        yield 2

    with Prefetch(source(), lambda batch: batch) as placed:
        assert placed.poll(10, 0) == 1
        assert placed.poll(0.01, 0) == 0
        come.set()
        assert placed.peek(0) == 2
        assert placed.poll(10, 0) == 2
        for _ in range(2):
            with pytest.raises(StopIteration):
                placed.poll(10, 0)
