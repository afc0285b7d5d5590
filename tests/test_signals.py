"""A signal stops a program at once, or as soon as JAX is left."""

from __future__ import annotations

import os
import signal
import threading

import jax
import jax.numpy as jnp
import pytest

from dlrm_jax.signals import Interrupted, check, deferred, handled

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def send(number: int) -> None:
    """Sends a signal to this process, and gives Python time to notice."""
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass


@BOTH
def test_a_signal_raises_at_once(number: int):
    with handled(), pytest.raises(Interrupted, match=signal.Signals(number).name) as caught:
        send(number)
    assert (caught.value.number, caught.value.saved) == (number, False)


@BOTH
def test_below_jax_it_waits_for_the_next_check(number: int, capfd: pytest.CaptureFixture[str]):
    traced = []

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        send(number)
        traced.append(number)
        return 2 * x

    with handled():
        assert double(jnp.ones(())) == 2
        assert traced == [number]
        with pytest.raises(Interrupted) as caught:
            check()
    assert caught.value.number == number
    assert capfd.readouterr().err.startswith(signal.Signals(number).name)


@BOTH
def test_a_deferring_context_ends_with_what_it_deferred(number: int):
    found = []

    def work() -> None:
        with handled(), deferred() as requested:
            found.append(requested())
            send(number)
            found.append(requested())

    with pytest.raises(Interrupted) as caught:
        work()
    assert found == [0, number]
    assert caught.value.number == number


def test_one_that_got_lost_is_raised_by_the_next_context():
    with handled():
        with pytest.raises(Interrupted):  # and caught by somebody
            send(signal.SIGINT)
        with pytest.raises(Interrupted), deferred():
            pytest.fail("it begins nothing")


def test_handlers_are_put_back_and_requests_forgotten():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), deferred():
        send(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with deferred() as requested:
        assert requested() == 0
    check()


def test_other_threads_have_no_handlers():
    found = []

    def work() -> None:
        with deferred() as requested:
            found.append(requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]
