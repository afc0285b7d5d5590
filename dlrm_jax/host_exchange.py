"""Bytes that the processes of a run send each other over TCP, beside JAX's collectives.

A thread that loads batches must start no collective of JAX, see `data.prefetch`, and messages of
different sizes fit none. Each `HostExchange` has connections of its own, so threads that use
different ones needn't wait for each other.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import threading
from collections.abc import Sequence

import jax

from dlrm_jax.coordinator import coordinator_host
from dlrm_jax.processes import gathered_texts, is_distributed, on_process_0

_CONNECT_SECONDS = 60  # all are about to connect, so that a slow one is merely busy
_TOKEN_BYTES = 32
_LENGTH = struct.Struct("<q")  # of a message, before it
_HELLO = struct.Struct(f"<{_TOKEN_BYTES}sq")  # token, and number of the process that connects


class LostProcessError(RuntimeError):
    """Another process has ended, or has closed its connections."""


class HostExchange:
    """Connections of this process to all others. One thread at a time may use it.

    Args:
        index: number of this process.
        sockets: connection to each other process, by its number.
    """

    def __init__(self, index: int, sockets: dict[int, socket.socket]):
        self.index, self.count = index, len(sockets) + 1
        self._sockets = sockets

    def __del__(self):
        for each in self._sockets.values():
            each.close()

    def all_to_all(self, messages: Sequence[bytes]) -> list[bytes]:
        """Sends each process a message, and gets one from each. All call it in the same order.

        Args:
            messages: message to each process, this one's own among them, by its number.

        Returns:
            The message of each process to this one.

        Raises:
            LostProcessError: another process has ended, or this exchange was closed.
        """
        assert len(messages) == self.count
        failure: list[Exception] = []

        def send() -> None:
            # In the order in which the others receive, so that none waits for one that waits.
            for step in range(1, self.count):
                peer = (self.index + step) % self.count
                try:
                    _send(self._sockets[peer], messages[peer])
                except OSError as error:
                    failure.append(_lost(peer, error))

        # In a thread: a message larger than the sockets' buffers waits until it is received.
        sender = threading.Thread(target=send, name="host exchange", daemon=True)
        sender.start()
        found = [messages[self.index]] * self.count
        for step in range(1, self.count):
            peer = (self.index - step) % self.count
            try:
                found[peer] = _receive(self._sockets[peer])
            except OSError as error:
                raise _lost(peer, error) from error
        sender.join()
        if failure:
            raise failure[0]
        return found

    def close(self) -> None:
        """Ends all that waits for messages here and in the other processes, in any thread."""
        for each in self._sockets.values():
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other process was faster
                continue


def connected() -> HostExchange | None:
    """New connections to all other processes; None where there are none.

    All processes call it together, where they may start a collective of JAX.

    Raises:
        LostProcessError: a process can't be reached.
    """
    return _connect() if is_distributed() and jax.process_count() > 1 else None


def _connect() -> HostExchange:
    count, index = jax.process_count(), jax.process_index()
    token = bytes.fromhex(on_process_0(lambda: secrets.token_hex(_TOKEN_BYTES)))
    coordinator = on_process_0(coordinator_host)
    try:
        family, host = _own_address(coordinator)
    except OSError as error:
        raise LostProcessError(f"process 0 can't be reached at {coordinator}: {error}") from error
    sockets: dict[int, socket.socket] = {}
    # Process 0 connects to all and listens in vain: its own name may mean the loopback to it alone.
    with socket.create_server((host, 0), family=family, backlog=count) as listener:
        listener.settimeout(_CONNECT_SECONDS)
        places = gathered_texts(f"{host} {listener.getsockname()[1]}")
        for peer in range(index + 1, count):
            there, port = places[peer].split(" ")
            try:
                sockets[peer] = socket.create_connection((there, int(port)), _CONNECT_SECONDS)
                sockets[peer].sendall(_HELLO.pack(token, index))
            except OSError as error:
                raise _lost(peer, error) from error
        while len(sockets) < count - 1:
            try:
                peer, accepted = _accepted(listener, token)
            except OSError as error:
                missing = next(x for x in range(index) if x not in sockets)
                raise _lost(missing, error) from error
            if peer is not None:
                sockets[peer] = accepted
    for each in sockets.values():
        each.settimeout(None)  # JAX's heartbeat notices a machine that is gone
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return HostExchange(index, sockets)


def _accepted(listener: socket.socket, token: bytes) -> tuple[int | None, socket.socket]:
    """The next connection and its process; None for a program that isn't one of the run."""
    accepted, _ = listener.accept()
    accepted.settimeout(_CONNECT_SECONDS)
    try:
        found, peer = _HELLO.unpack(_received(accepted, _HELLO.size))
    except OSError:
        found, peer = b"", None
    if hmac.compare_digest(found, token):
        return peer, accepted
    accepted.close()
    return None, accepted


def _own_address(coordinator: str) -> tuple[socket.AddressFamily, str]:
    """The address of this machine by which it reaches the coordinator, which the others can, too.

    Raises:
        OSError: the coordinator can't be reached.
    """
    failure: OSError | None = None
    for family, kind, _, _, address in socket.getaddrinfo(coordinator, 1, type=socket.SOCK_DGRAM):
        with socket.socket(family, kind) as probe:
            try:
                probe.connect(address)  # of datagrams: it sends nothing
                return family, probe.getsockname()[0]
            except OSError as error:
                failure = error
    raise failure or OSError(f"{coordinator} has no address")


def _send(to: socket.socket, message: bytes) -> None:
    to.sendall(_LENGTH.pack(len(message)))
    to.sendall(message)


def _receive(of: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_received(of, _LENGTH.size))
    return _received(of, length)


def _received(of: socket.socket, length: int) -> bytes:
    """So many bytes.

    Raises:
        OSError: the connection has ended before.
    """
    found = bytearray(length)
    left = memoryview(found)
    while left:
        count = of.recv_into(left)
        if not count:
            raise ConnectionError("it has closed the connection")
        left = left[count:]
    return bytes(found)


def _lost(peer: int, error: OSError) -> LostProcessError:
    return LostProcessError(f"process {peer} can't be reached: {error}")
