"""Messages between processes: of any size at the same time, and the end of a process."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from threads_as_processes import together

from dlrm_jax import host_exchange
from dlrm_jax.host_exchange import HostExchange, LostProcessError, connected


@pytest.fixture
def exchanges() -> Iterator[Callable[[int], list[HostExchange]]]:
    """Those of threads in the place of processes."""
    opened: list[socket.socket] = []

    def made(count: int) -> list[HostExchange]:
        sockets: list[dict[int, socket.socket]] = [{} for _ in range(count)]
        for left, right in itertools.combinations(range(count), 2):
            sockets[left][right], sockets[right][left] = pair = socket.socketpair()
            opened.extend(pair)
        return [HostExchange(index, own) for index, own in enumerate(sockets)]

    yield made
    for each in opened:
        each.close()


def message(of: int, to: int, size: int) -> bytes:
    return bytes([of, to]) * (size * (to + 1))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_get_what_each_has_sent_them(count: int, exchanges):
    # Far more than a socket's buffers take: one that sends must receive meanwhile.
    made = exchanges(count)

    def process(index: int) -> None:
        for size in (0, 1, 300_000, 3):
            sent = [message(index, to, size) for to in range(count)]
            expected = [message(of, index, size) for of in range(count)]
            assert made[index].all_to_all(sent) == expected

    together(count, process)


def test_an_end_wakes_those_who_wait(exchanges):
    one, two, three = exchanges(3)
    errors = []

    def wait(own: HostExchange) -> None:
        with pytest.raises(LostProcessError, match=r"process \d can't be reached") as error:
            own.all_to_all([b"x" * 3_000_000] * own.count)
        errors.append(str(error.value))

    waiting = [threading.Thread(target=wait, args=(x,)) for x in (one, two)]
    for each in waiting:
        each.start()
    three.close()
    for each in waiting:
        each.join(30)
    assert len(errors) == 2

    one, _ = exchanges(2)  # it waits itself
    own = threading.Thread(target=wait, args=(one,))
    own.start()
    one.close()
    own.join(30)
    assert len(errors) == 3


def connect(monkeypatch: pytest.MonkeyPatch, count: int, coordinator: str = "localhost"):
    """`connected` in threads, each of which is a process to it."""
    own, barrier = threading.local(), threading.Barrier(count)
    said: dict[str, list] = {}

    def gathered(text):
        said.setdefault("all", [None] * count)[own.index] = text
        barrier.wait()
        return said["all"]

    def on_process_0(action):
        if own.index == 0:
            said["result"] = action()
        barrier.wait()
        found = said["result"]
        barrier.wait()
        return found

    monkeypatch.setattr(host_exchange, "gathered_texts", gathered)
    monkeypatch.setattr(host_exchange, "on_process_0", on_process_0)
    monkeypatch.setattr(host_exchange, "coordinator_host", lambda: coordinator)
    monkeypatch.setattr(host_exchange, "is_distributed", lambda: True)
    monkeypatch.setattr(host_exchange.jax, "process_count", lambda: count)
    monkeypatch.setattr(host_exchange.jax, "process_index", lambda: own.index)

    def process(index: int):
        own.index = index
        return connected()

    return lambda: together(count, process)


def test_processes_find_each_other(monkeypatch: pytest.MonkeyPatch):
    made = connect(monkeypatch, 3)()
    monkeypatch.undo()

    def process(index: int) -> None:
        found = made[index].all_to_all([message(index, to, 9) for to in range(3)])
        assert found == [message(of, index, 9) for of in range(3)]

    together(3, process)


def test_a_stranger_is_no_process(monkeypatch: pytest.MonkeyPatch):
    """Another program that connects first, and says something, is sent away."""
    real, strangers = socket.create_server, []

    def listening(*args, **kwargs):
        server = real(*args, **kwargs)
        strangers.append(socket.create_connection(server.getsockname()[:2]))
        strangers[-1].sendall(b"GET / HTTP/1.1\r\n" * 9)
        return server

    monkeypatch.setattr(host_exchange.socket, "create_server", listening)
    made = connect(monkeypatch, 2)()
    monkeypatch.undo()
    assert together(2, lambda index: made[index].all_to_all([b"a", b"b"])) == [
        [b"a", b"a"],
        [b"b", b"b"],
    ]
    for each in strangers:
        each.close()


def test_a_coordinator_without_an_address(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(LostProcessError, match=r"process 0 can't be reached at nowhere\.invalid"):
        connect(monkeypatch, 2, "nowhere.invalid")()


def test_a_single_process_has_none():
    assert connected() is None
