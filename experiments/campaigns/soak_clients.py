"""Clients of a server for a long time: good ones, impolite ones, and malformed bodies."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import weakref
from collections.abc import Callable, Sequence

import uvloop

from experiments.benchmarks.peers.workers.http_connection import LOST, Answered, Connection
from experiments.campaigns.soak_requests import Request, malformed

Count = Callable[[str, str], None]
"""A function of a case and of what was lost, which is empty if nothing was."""

GOOD, MALFORMED, GONE, STALLED = "good requests", "malformed bodies", "disconnected", "stalled"
_ANSWER_SECONDS = 30
_CONNECTIONS = 32
_MOST_CONNECTIONS = 128  # of good clients; more requests wait for one


class Clients:
    """Clients of one server; a loop runs them.

    Args:
        port: port of the server.
        requests: good requests.
        artifact_of: function that gives the artifact of a version.
        count: function that counts tries.
        seed: seed of what is chosen by chance.
        timeout: seconds after which the server gives up a request.
    """

    def __init__(
        self,
        port: int,
        requests: Sequence[Request],
        artifact_of: Callable[[int], int],
        count: Count,
        seed: int,
        timeout: float,
    ):
        self._port, self._requests, self._artifact_of = port, requests, artifact_of
        self._count, self._chance, self._timeout = count, random.Random(seed), timeout
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._free: list[Connection] = []
        self._places = asyncio.Semaphore(_MOST_CONNECTIONS)
        self.seconds: list[float] = []  # of each good answer
        self.loop = uvloop.new_event_loop()

    def close(self) -> None:
        """Closes all connections and the loop."""
        for connection in self._all:
            connection.close()
        self.loop.run_until_complete(asyncio.sleep(0.01))  # which the loop closes in its next turn
        self.loop.close()

    async def _connected(self) -> Connection:
        connection = (await self.loop.create_connection(Connection, "127.0.0.1", self._port))[1]
        self._all.add(connection)
        return connection

    async def _ask(self, content: bytes) -> tuple[int, bytes]:
        """The answer to one request, on its own connection."""
        connection, future = await self._connected(), self.loop.create_future()
        connection.send(content, _result_of(future))
        try:
            return await asyncio.wait_for(future, _ANSWER_SECONDS)
        except TimeoutError:
            return LOST, b"no answer"
        finally:
            connection.close()

    # -- Good requests -----------------------------------------------------------------

    async def peak(self, seconds: float) -> float:
        """Good requests a second when 32 connections wait for their answers."""
        begun = time.perf_counter()
        answered = 0

        async def one() -> None:
            nonlocal answered
            while time.perf_counter() < begun + seconds:
                await self._good(self._chance.choice(self._requests))
                answered += 1

        await asyncio.gather(*(one() for _ in range(_CONNECTIONS)))
        return answered / (time.perf_counter() - begun)

    async def steady(self, rate: float, ended: asyncio.Event) -> None:
        """Good requests at the times of a Poisson process, until the event and their answers."""
        tasks: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while not ended.is_set():
            due += self._chance.expovariate(rate)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = self.loop.create_task(self._good(self._chance.choice(self._requests), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=_ANSWER_SECONDS)
        for _ in tasks:
            self._count(GOOD, f"no answer within {_ANSWER_SECONDS} seconds")

    async def _good(self, request: Request, due: float | None = None) -> None:
        due = due or time.perf_counter()
        async with self._places:
            connection = self._free.pop() if self._free else await self._connected()
            future = self.loop.create_future()
            connection.send(request.content, _result_of(future))
            status, body = await future
            if status == 200:  # others may close it
                self._free.append(connection)
            else:
                connection.close()
        self.seconds.append(time.perf_counter() - due)
        self._count(GOOD, request.problem(status, body, self._artifact_of))

    # -- Others ------------------------------------------------------------------------

    async def malformed(self, seconds: float, count: int, ended: asyncio.Event) -> None:
        """Changed requests, evenly over some time: an answer that is no error of the server."""
        for i in itertools.count():
            if i == count or ended.is_set():
                return
            content = malformed(self._chance.choice(self._requests), self._chance)
            status, body = await self._ask(content)
            good = 200 <= status < 500
            self._count(MALFORMED, "" if good else f"status {status}, {body[:200]!r}: {content!r}")
            await asyncio.sleep(0.9 * seconds / count)

    async def disconnected(self, ended: asyncio.Event) -> None:
        """Clients that go, after a part of a request or all of it."""
        while not ended.is_set():
            connection = await self._connected()
            content = self._chance.choice(self._requests).content
            length = self._chance.choice((len(content), self._chance.randint(1, len(content))))
            connection.send(content[:length], lambda *_: None)
            await asyncio.sleep(self._chance.choice((0, 0.0005, 0.002)))
            connection.close()
            self._count(GONE, "")
            await asyncio.sleep(0.1)

    async def stalled(self, ended: asyncio.Event) -> None:
        """A client that sends half of a request and waits: it is told that it is too late."""
        while not ended.is_set():
            content = self._chance.choice(self._requests).content
            head = content.index(b"\r\n\r\n") + 4
            length = self._chance.randint(head, len(content) - 1)
            begun = time.perf_counter()
            status, body = await self._ask(content[:length])
            seconds = time.perf_counter() - begun
            good = status == 504 and seconds < self._timeout + 5
            self._count(STALLED, "" if good else f"status {status} after {seconds:.1f} s: {body!r}")


def _result_of(future: asyncio.Future[tuple[int, bytes]]) -> Answered:
    def answered(status: int, body: bytes) -> None:
        if not future.done():
            future.set_result((status, body))

    return answered
