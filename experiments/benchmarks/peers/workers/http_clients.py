"""Clients of a server over HTTP: connections that stay, on one thread.

Requests are ``{"do": "connect", "port": …, "dense": path, "ids": path}``, then any number of:

- ``{"do": "check", "form": …, "output": path}``, which writes probabilities of all rows,
- ``{"do": "closed", "form": …, "rows": R, "connections": N, "seconds": …}``: each connection sends
  a request of R rows when it has the answer to the one before,
- ``{"do": "load", "form": …, "rows": R, "scenario": …, "rate": …, "seconds": …}``: LoadGen's
  samples, which are such requests.

Forms are those of `http_bodies`. Bodies are written beforehand, and only the status of an answer is
read.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import json
import resource
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import uvloop

from experiments.benchmarks.peers.workers.http_bodies import FORMS, post
from experiments.benchmarks.peers.workers.http_connection import Answered, Connection
from experiments.benchmarks.peers.workers.load_generator import Asked, LoadGenerator
from experiments.benchmarks.peers.workers.protocol import end_with_parent, only_for_answers

_REQUESTS = 256  # different ones
_CONNECTIONS = 64  # of LoadGen


class Clients:
    """Connections to a server, and a thread on which they run."""

    def __init__(self, port: int, dense: str, ids: str):
        self._port = port
        self._dense, self._ids = np.load(dense), np.load(ids)
        self._loop = uvloop.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._pool = _Pool([])
        self.failed = 0

    def _connect(self) -> None:
        """New connections: servers close those on which nothing comes for some seconds."""
        self._pool.close()
        self._pool = _Pool(self._run(self._connected(_CONNECTIONS)))

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _connected(self, count: int) -> list[Connection]:
        return [
            (await self._loop.create_connection(Connection, "127.0.0.1", self._port))[1]
            for _ in range(count)
        ]

    @functools.cache  # noqa: B019 (there is one object)
    def _requests(self, form: str, rows: int) -> list[bytes]:
        count = min(_REQUESTS, len(self._ids) // rows)
        slices = (slice(i * rows, (i + 1) * rows) for i in range(count))
        return [post(form, self._dense[x], self._ids[x]) for x in slices]

    def check(self, form: str, output: str) -> dict[str, Any]:
        """Writes the probabilities of all rows."""
        found: list[tuple[int, bytes]] = []
        done = threading.Event()

        def answered(status: int, body: bytes) -> None:
            found.append((status, body))
            done.set()

        self._connect()
        request = post(form, self._dense, self._ids)
        self._loop.call_soon_threadsafe(self._pool.send, request, answered)
        assert done.wait(60), "no answer within a minute"
        ((status, body),) = found
        assert status == 200, (status, body[:1000])
        np.save(output, FORMS[form].read(body))
        return {}

    def closed(self, form: str, rows: int, connections: int, seconds: float) -> dict[str, Any]:
        """Rates and latencies when each connection waits for its answer."""
        return self._run(self._closed(self._requests(form, rows), rows, connections, seconds))

    async def _closed(
        self, requests: Sequence[bytes], rows: int, connections: int, seconds: float
    ) -> dict[str, Any]:
        times: list[float] = []
        own = await self._connected(connections)
        failed, number = 0, 0
        ended = [self._loop.create_future() for _ in own]
        begun, begun_cpu = time.perf_counter() + seconds / 5, 0.0
        end = begun + seconds

        def start(connection: Connection, future: asyncio.Future[None]) -> None:
            nonlocal number
            request = requests[number % len(requests)]
            number += 1
            sent = time.perf_counter()

            def answered(status: int, _: bytes) -> None:
                nonlocal failed, begun_cpu
                now = time.perf_counter()
                if now >= begun:
                    begun_cpu = begun_cpu or _cpu_seconds()
                    times.append(now - sent)
                    failed += status != 200
                if now < end:
                    start(connection, future)
                else:
                    future.set_result(None)

            connection.send(request, answered)

        for each in zip(own, ended, strict=True):
            start(*each)
        await asyncio.gather(*ended)
        took = time.perf_counter() - begun
        for connection in own:
            connection.close()
        return {
            "rate": rows * len(times) / took,
            "p50_ms": 1e3 * float(np.quantile(times, 0.5)),
            "p99_ms": 1e3 * float(np.quantile(times, 0.99)),
            "failed": failed,
            "client_cpu": (_cpu_seconds() - begun_cpu) / took,
        }

    def load(
        self, form: str, rows: int, scenario: Any, rate: float, seconds: float
    ) -> dict[str, Any]:
        """LoadGen's samples."""
        generator = self._generator(form, rows)
        self._connect()
        self.failed, begun, begun_cpu = 0, time.perf_counter(), _cpu_seconds()
        found = generator.run(scenario, rate, seconds)
        cpu = (_cpu_seconds() - begun_cpu) / (time.perf_counter() - begun)
        return found | {"failed": self.failed, "client_cpu": cpu}

    @functools.cache  # noqa: B019 (there is one object)
    def _generator(self, form: str, rows: int) -> LoadGenerator:
        requests = self._requests(form, rows)

        def send(asked: Sequence[Asked]) -> None:
            for each in asked:
                self._pool.send(requests[each.sample], functools.partial(answered, each.query))

        def answered(query: int, status: int, _: bytes) -> None:
            self.failed += status != 200
            generator.answer([query])

        def issue(asked: Sequence[Asked]) -> None:
            self._loop.call_soon_threadsafe(send, asked)

        generator = LoadGenerator(issue, len(requests))
        return generator


class _Pool:
    """Connections, and requests that wait for one; for the thread of the loop."""

    def __init__(self, free: list[Connection]):
        self._free = free
        self._waiting: collections.deque[tuple[bytes, Answered]] = collections.deque()

    def close(self) -> None:
        for connection in self._free:
            connection.close()

    def send(self, request: bytes, answered: Answered) -> None:
        if not self._free:
            self._waiting.append((request, answered))
            return
        connection = self._free.pop()

        def done(status: int, body: bytes) -> None:
            self._free.append(connection)
            answered(status, body)
            if self._waiting:
                self.send(*self._waiting.popleft())

        connection.send(request, done)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _serve() -> None:
    end_with_parent()
    answers = only_for_answers()
    clients: Clients | None = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        answer: dict[str, Any] = {}
        if do == "connect":
            clients = Clients(**request)
        else:
            answer = getattr(clients, do)(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
