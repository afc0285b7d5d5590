"""Threads in the place of processes, with queues in the place of connections."""

from __future__ import annotations

import concurrent.futures
import queue
from collections.abc import Callable, Sequence
from typing import Any

from dlrm_jax.host_exchange import LostProcessError

SECONDS = 60


class QueueExchange:
    """What `HostExchange` is, for one of several threads."""

    def __init__(self, index: int, queues: Sequence[Sequence[queue.Queue]]):
        self.index, self.count, self._queues = index, len(queues), queues

    def all_to_all(self, messages: Sequence[bytes]) -> list[bytes]:
        for to, message in zip(self._queues[self.index], messages, strict=True):
            to.put(message)
        found = [self._queues[x][self.index].get(timeout=SECONDS) for x in range(self.count)]
        if None in found:
            raise LostProcessError("closed")
        return found

    def close(self) -> None:
        for index in range(self.count):
            self._queues[index][self.index].put(None)
            self._queues[self.index][index].put(None)


def exchanges(count: int) -> list[QueueExchange]:
    queues = [[queue.Queue() for _ in range(count)] for _ in range(count)]
    return [QueueExchange(index, queues) for index in range(count)]


def together(count: int, action: Callable[[int], Any]) -> list[Any]:
    """The results of an action in each of the threads; the first of their errors is raised."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [x.result(SECONDS) for x in [pool.submit(action, i) for i in range(count)]]
