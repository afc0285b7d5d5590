"""A topic of Kafka that several processes read: process 0 says which messages come next.

The order of messages between partitions is the one in which they are read, which is another one in
each process.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.host_exchange import HostExchange, connected
from dlrm_jax.stream.kafka_topic import KafkaTopic
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.source import Segment, Source, UnreachableError

_PATIENCE = 60.0  # seconds for messages that process 0 has read


def open_topic(url: str, schema: Schema, consumed: Iterable[Consumed] = ()) -> Source:
    """A topic as one process reads it, or as several do, which call this together.

    The arguments are those of `KafkaTopic`.
    """
    topic, exchange = KafkaTopic(url, schema, consumed), connected()
    return LedTopic(topic, exchange) if exchange else topic


class LedTopic:
    """The messages of a topic in the order in which process 0 reads them; see `Source`.

    All processes call `next` alike: each waits for the others.

    Args:
        topic: topic as this process reads it.
        exchange: connections to the others.
    """

    def __init__(self, topic: KafkaTopic, exchange: HostExchange):
        self._topic, self._exchange = topic, exchange

    @property
    def consumed(self) -> tuple[Consumed, ...]:
        """None: a position has the note of its message."""
        return ()

    def next(self, after: Position | None) -> Segment | None:
        """The messages behind a position that process 0 has read, see `Source`.

        Raises:
            LostProcessError: another process has ended, or `stop` was called.
        """
        if self._exchange.index:
            name = self._told("")
            return self._followed(after, name) if name else None
        segment = None
        try:
            segment = self._topic.next(after)
        finally:  # also if it doesn't answer: the others look again, as this one does
            self._told(segment.note.name if segment else "")
        return segment

    def _followed(self, after: Position | None, name: str) -> Segment:
        """The segment that process 0 has read; it must come, or the processes would differ."""
        deadline, failure = time.monotonic() + _PATIENCE, ""
        while True:
            try:
                if segment := self._topic.up_to(after, name):
                    return segment
            except UnreachableError as error:
                failure = f" ({error})"
            if time.monotonic() > deadline:
                raise UserError(
                    f"stream: process 0 has read messages behind {after or 'the beginning'} that "
                    f"process {self._exchange.index} didn't get in {_PATIENCE:.0f} seconds"
                    f"{failure}; see that all processes reach the brokers"
                )

    def stop(self) -> None:
        """Ends a `next` that waits for other processes."""
        self._exchange.close()

    def _told(self, name: str) -> str:
        """The text of process 0, in all processes."""
        return self._exchange.all_to_all([name.encode()] * self._exchange.count)[0].decode()
