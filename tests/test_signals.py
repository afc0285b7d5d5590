"""A signal stops a program at once, or as soon as JAX is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dlrm_jax.signals import Interrupted, check, deferred, handled, kept_for_child

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])


def send(number: int) -> None:
    """Sends a signal to this process, and gives Python time to notice."""
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass


@BOTH
def test_a_signal_raises_at_once(number: int):
    with pytest.raises(Interrupted, match=signal.Signals(number).name) as caught, handled():
        send(number)
    assert (caught.value.number, caught.value.saved) == (number, False)


@BOTH
def test_a_program_that_imports_ends_at_once(number: int):
    """In the first second, say, with one line; what has handlers of its own goes before."""
    program = (
        "import os, signal; from dlrm_jax.signals import end_at_once, handled, Interrupted\n"
        "end_at_once()\n"
        "try:\n"
        f"    with handled(): os.kill(os.getpid(), {int(number)})\n"
        "except Interrupted: print('handled', flush=True)\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "for _ in range(1000): pass\n"
        "print('not ended')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 128 + number
    assert ended.stdout == "handled\n"
    assert ended.stderr == f"stopped by {signal.Signals(number).name}\n"


@BOTH
def test_below_jax_it_waits_for_the_next_check(number: int, capfd: pytest.CaptureFixture[str]):
    traced = []

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        send(number)
        traced.append(number)
        return 2 * x

    def work() -> None:
        with handled():
            assert double(jnp.ones(())) == 2
            check()

    with pytest.raises(Interrupted) as caught:
        work()
    assert traced == [number]
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
    begun = []

    def work() -> None:
        with handled():
            with contextlib.suppress(Interrupted):
                send(signal.SIGINT)
            with deferred():
                begun.append("the next")

    with pytest.raises(Interrupted):
        work()
    assert begun == []


def test_what_waited_is_raised_at_the_end():
    with pytest.raises(Interrupted), handled():
        jax.eval_shape(lambda: send(signal.SIGTERM))


def test_a_second_signal_does_what_it_did_before():
    def work() -> None:
        with deferred():
            send(signal.SIGINT)
            send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert not isinstance(caught.value, Interrupted)


TWO = """
import contextlib, os, signal, sys
from dlrm_jax.signals import deferred, end_at_once, handled, kept_for_child
end_at_once()
together = kept_for_child() if "together" in sys.argv else contextlib.nullcontext()
with handled(), deferred(), together:
    os.kill(os.getpid(), signal.SIGTERM)
    with contextlib.suppress(BaseException):  # as callbacks of JAX's compiler do
        os.kill(os.getpid(), int(sys.argv[1]))
    print("it goes on")
"""


@pytest.mark.parametrize(
    ("second", "together", "code", "message"),
    [
        (signal.SIGTERM, "", -signal.SIGTERM, ""),  # by the system
        (signal.SIGINT, "", 130, "stopped by SIGINT\n"),
        (signal.SIGINT, "together", 143, "stopped by SIGTERM\n"),  # Python handles SIGINT first
    ],
)
def test_in_a_program_nothing_swallows_the_second_signal(
    second: int, together: str, code: int, message: str
):
    command = [sys.executable, "-c", TWO, str(int(second)), together]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, message)
    assert not result.stdout or together


def test_handlers_are_put_back_and_requests_forgotten():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), deferred():
        send(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with deferred() as requested:
        assert requested() == 0
    check()


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled():
            send(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_handlers():
    found = []

    def work() -> None:
        with deferred() as requested:
            found.append(requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


@BOTH
def test_a_broken_standard_error_is_no_reason_to_end(number: int, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> int:
        raise BrokenPipeError

    def work() -> None:
        with handled():
            assert jax.jit(lambda x: (send(number), 2 * x)[1])(jnp.ones(())) == 2
            check()

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(Interrupted):
        work()


def test_an_inner_deferring_context_leaves_the_outer_one_deferring():
    def work() -> None:
        with deferred() as requested:
            with deferred():
                pass
            send(signal.SIGINT)
            assert requested() == signal.SIGINT

    with pytest.raises(Interrupted):
        work()


@BOTH
def test_a_terminal_that_is_closed_may_say_so_again(number: int):
    """A shell and the system both send SIGHUP; the work in between must be saved."""
    found = []

    def work() -> None:
        with deferred() as received:
            send(number)
            send(signal.SIGHUP)
            found.append(received())

    before = signal.signal(signal.SIGHUP, lambda *_: found.append("again"))
    try:
        with pytest.raises(Interrupted, match=signal.Signals(number).name):
            work()
        assert found == [number]
        send(signal.SIGHUP)
        assert found == [number, "again"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_may_come_while_another_signal_is_handled():
    def work() -> None:
        with deferred() as received:
            on_hangup: Any = signal.getsignal(signal.SIGHUP)
            send(signal.SIGTERM)
            on_hangup(signal.SIGHUP, None)
            assert received() == signal.SIGTERM

    with pytest.raises(Interrupted, match="SIGTERM"):
        work()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_closed_terminal_may_come_together_with_another_signal(number: int):
    """Python handles SIGHUP first, whichever came first; the work in between must be saved."""
    found = []

    def work() -> None:
        with deferred() as received:
            with kept_for_child():  # as in a long call of JAX
                for each in (number, signal.SIGHUP):  # to this thread: another could take them
                    signal.pthread_kill(threading.get_ident(), each)
            found.append(received())
            send(number)

    before = signal.signal(number, lambda *_: found.append("again"))
    try:
        with pytest.raises(Interrupted, match=signal.Signals(number).name):
            work()
    finally:
        signal.signal(number, before)
    assert found == [number, "again"], "the next one ends it"
