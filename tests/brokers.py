"""A Redis server, and Kafka's brokers in the process of the tests."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

STREAM = "clicks"


def json_messages(frame: pl.DataFrame, rows: Sequence[int]) -> list[bytes]:
    """JSON of so many rows each."""
    found, start = [], 0
    for count in rows:
        file = io.BytesIO()
        frame.slice(start, count).write_ndjson(file)
        found.append(file.getvalue())
        start += count
    return found


@contextlib.contextmanager
def redis_server(directory: Path, port: int = 0, *settings: str) -> Iterator[int]:
    """A server on a free port, with nothing in it; gives the port."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server here")
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    own = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes")
    command = [program, *own, "--dir", str(directory), *settings]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()


class MockKafka:
    """Brokers of librdkafka, which live as long as their producer; four partitions a topic."""

    def __init__(self):
        import confluent_kafka

        settings = {"test.mock.num.brokers": 1, "bootstrap.servers": "none:1", "log_level": 2}
        self.producer = confluent_kafka.Producer(settings)
        (broker,) = self.producer.list_topics(timeout=10).brokers.values()
        self.url = f"kafka://{broker.host}:{broker.port}/{STREAM}"

    def send(self, messages: Sequence[Any], partition: int = 0) -> None:
        """Appends messages to a partition."""
        for message in messages:
            self.producer.produce(STREAM, message, partition=partition)
        assert self.producer.flush(10) == 0
