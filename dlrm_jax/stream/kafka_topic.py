"""A topic of Kafka, all its partitions: a segment is the messages that were read at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.kafka_place import KafkaPlace
from dlrm_jax.stream.messages import Message, check_same, segment_of
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.source import Segment, UnreachableError

_MESSAGES = 10_000  # of a segment, at most
_BYTES = 1 << 26  # of a segment, about
_WAIT = 0.2  # seconds for new messages
_SECONDS = 10.0  # for an answer of the brokers
_ADVICE = "no message can be removed from a topic: write a topic without it"


class KafkaTopic:
    """The messages of a topic. The order of those of one partition is kept.

    The rows of a message are its value, see `messages`; one without a value has none. A message
    may be deleted when a checkpoint has its last row; others that are deleted are an error, and so
    is a topic that was made anew. No offsets are committed: the checkpoints have them.

    Which message comes next of several partitions depends on who asks, and when: see `LedTopic` for
    several processes.

    Args:
        url: ``kafka://HOST:PORT,HOST:PORT/TOPIC?SETTING=VALUE``, with settings of librdkafka such
            as ``security.protocol=SSL``.
        schema: meaning of the columns.
        consumed: messages that were read before, as a checkpoint notes them.

    Raises:
        UserError: the URL isn't of this form, or the package ``confluent_kafka`` isn't there.
    """

    def __init__(self, url: str, schema: Schema, consumed: Iterable[Consumed] = ()):
        try:
            import confluent_kafka
        except ImportError as error:
            raise UserError(
                f"stream: {error}; streams of Kafka need pip install -e '.[kafka]'"
            ) from error
        self._kafka = confluent_kafka
        try:
            parts = urlsplit(url)
            pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
            self._topic = unquote(parts.path.removeprefix("/"))
            if not self._topic or not parts.netloc or "@" in parts.netloc:
                raise ValueError(
                    "expected a host and a topic, such as kafka://localhost:9092/clicks, and a "
                    "password as ?sasl.username=NAME&sasl.password=PASSWORD"
                )
            self._consumer = confluent_kafka.Consumer(
                {
                    "bootstrap.servers": parts.netloc,
                    "group.id": "dlrm_jax",  # which is asked for, and not used
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "error",
                    "log_level": 2,
                    **{name: unquote(value) for name, _, value in pairs},
                }
            )
        except (ValueError, confluent_kafka.KafkaException) as error:
            what = _text(error) if isinstance(error, confluent_kafka.KafkaException) else error
            raise UserError(
                f"stream: expected kafka://HOST:PORT/TOPIC: {what}; mend the URL"
            ) from error
        self._place = f"kafka://{parts.netloc}/{self._topic}"
        self._schema, self._known = schema, tuple(consumed)
        self._at: dict[int, int] = {}  # offset that is read next, by partition
        self._checked = ""  # name of the position whose message was compared
        self._messages = 16

    @property
    def consumed(self) -> tuple[Consumed, ...]:
        """None: a position has the note of its message."""
        return ()

    def next(self, after: Position | None) -> Segment | None:
        """The messages behind a position, see `Source`."""
        place = KafkaPlace.of(after.segment) if after else None
        with self._errors():
            starts = self._starts(place)
            if starts is None:
                return None
            if place and after and (again := self._again(place, after)):
                return again
            return self._following(place, starts)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Context in which the client's errors become those of `Source`."""
        try:
            yield
        except self._kafka.KafkaException as error:
            if self._is_away(error.args[0]):
                raise UnreachableError(
                    f"stream: {self._place} can't be reached: {_text(error)}"
                ) from error
            raise UserError(f"stream: {self._place}: {_text(error)}") from error

    def up_to(self, after: Position | None, name: str) -> Segment | None:
        """The segment behind a position that another process has read.

        Args:
            after: position; None for the beginning of the stream.
            name: name of the segment.

        Returns:
            None if its messages don't come within some seconds.

        Raises:
            UnreachableError, UserError: see `next`.
        """
        if after and not after.ended:
            return self.next(after)  # the rest of a message, whoever reads it
        place, until = KafkaPlace.of(after.segment) if after else None, KafkaPlace.of(name)
        number = place.number if place else 0
        with self._errors():
            starts, found = self._starts(place) or {}, []
            self._at = {}
            self._assign({x: start for x, start in starts.items() if start < until.next.get(x, 0)})
            deadline = time.monotonic() + _SECONDS
            while len(found) < until.number - number:
                if time.monotonic() > deadline:
                    return None
                messages = self._consume(self._messages)
                found += [x for x in messages if x.offset() < until.next[x.partition()]]
            self._at = {}  # what is behind was read, and isn't to be left out
            # Partitions without a message here are where they will be.
            firsts = {x: min((y.offset() for y in found if y.partition() == x), default=end)
                      for x, end in until.next.items()}  # fmt: skip
            segment = self._joined(found, number, firsts | dict(place.next if place else {}))
        assert len(segment.ends) == len(found), f"expected {name}, got {segment.note.name}"
        return segment

    def _is_away(self, error: Any) -> bool:
        """Whether brokers may answer again, as after one of them has become the leader."""
        kind = self._kafka.KafkaError
        codes = (
            kind._TRANSPORT, kind._ALL_BROKERS_DOWN, kind._TIMED_OUT, kind._RESOLVE,
            kind.LEADER_NOT_AVAILABLE, kind.NOT_LEADER_FOR_PARTITION, kind.REQUEST_TIMED_OUT,
            kind.NETWORK_EXCEPTION, kind.OFFSET_NOT_AVAILABLE, kind.COORDINATOR_NOT_AVAILABLE,
        )  # fmt: skip
        return error.retriable() or error.code() in codes

    def _starts(self, place: KafkaPlace | None) -> dict[int, int] | None:
        """The offset that is read next, by partition; None if there is no such topic yet."""
        topic = self._consumer.list_topics(self._topic, timeout=_SECONDS).topics[self._topic]
        if topic.error is not None:
            kind = self._kafka.KafkaError
            absent = (kind.UNKNOWN_TOPIC_OR_PART, kind._UNKNOWN_TOPIC)
            if topic.error.code() in absent and place is None:
                return None
            raise self._kafka.KafkaException(topic.error)
        known, starts = place.next if place else {}, {}
        for partition in sorted(topic.partitions):
            low, high = self._bounds(partition)
            # A partition that is new since the position was never read: from its first message on.
            starts[partition] = known.get(partition, 0 if place else low)
            if not low <= starts[partition] <= high:
                raise UserError(
                    f"stream: {self._place}: the run has read partition {partition} up to offset "
                    f"{starts[partition]:,}, and the topic has offsets {low:,} to {high:,}, so "
                    f"messages are lost, or it is another topic; give another --workdir"
                )
        if lost := known.keys() - starts.keys():
            raise UserError(
                f"stream: {self._place}: the run has read partition {min(lost)}, which is no "
                f"more; give another --workdir"
            )
        return starts

    def _again(self, place: KafkaPlace, after: Position) -> Segment | None:
        """The message of a position, if it isn't read to its end; compares what is there."""
        if after.ended and self._checked == after.segment:
            return None
        offset = place.next[place.partition] - 1
        if offset < self._bounds(place.partition)[0]:
            if after.ended:
                return None
            raise UserError(
                f"stream: {self._place}: {after.row:,} rows of the message at offset {offset:,} of "
                f"partition {place.partition} were read, and it is gone; give another --workdir to "
                f"start anew"
            )
        self._assign({place.partition: offset})
        until = time.monotonic() + _SECONDS
        while not (messages := self._consume(1)):
            if time.monotonic() > until:
                kind = self._kafka.KafkaError
                raise self._kafka.KafkaException(kind(kind._TIMED_OUT))
        self._at = {}
        message = self._message(messages[0])
        if messages[0].offset() == offset:  # else it is one that compaction has taken away
            check_same(message, after, self._known)
        elif not after.ended:
            raise UserError(
                f"stream: {self._place}: {after.row:,} rows of the message at offset {offset:,} of "
                f"partition {place.partition} were read, and compaction has taken it away; give "
                f"another --workdir to start anew"
            )
        self._checked = after.segment
        if after.ended:
            return None
        return self._segment([message], lambda _: place)

    def _following(self, place: KafkaPlace | None, starts: dict[int, int]) -> Segment | None:
        """The messages behind those that were read, as many as come at once."""
        self._assign(starts)
        found = self._consume(self._messages)
        if not found:
            return None
        segment = self._joined(found, place.number if place else 0, starts)
        # What was fetched ahead is of use if all that came is in the segment.
        complete = len(segment.ends) == len(found)
        self._at = dict(KafkaPlace.of(segment.note.name).next) if complete else {}
        return segment

    def _joined(self, found: list[Any], number: int, starts: Mapping[int, int]) -> Segment:
        """A segment of messages, in the order of their partitions.

        Args:
            found: messages.
            number: number of messages that were read before.
            starts: offset that was read next before them, by partition.
        """
        found.sort(key=lambda x: (x.partition(), x.offset()))
        places, offsets = [], dict(starts)
        for i, message in enumerate(found):
            offsets[message.partition()] = message.offset() + 1
            places.append(KafkaPlace(number + i + 1, message.partition(), dict(offsets)))
        segment = self._segment([self._message(x) for x in found], places.__getitem__)
        self._checked = segment.note.name
        return segment

    def _bounds(self, partition: int) -> tuple[int, int]:
        """The first offset that is there, and the one behind the last."""
        place = self._kafka.TopicPartition(self._topic, partition)
        bounds = self._consumer.get_watermark_offsets(place, timeout=_SECONDS)
        if bounds is None:
            kind = self._kafka.KafkaError
            raise self._kafka.KafkaException(kind(kind._TIMED_OUT))
        return bounds

    def _assign(self, starts: Mapping[int, int]) -> None:
        """Reads on at these offsets; what was fetched ahead stays if it is behind them."""
        if starts != self._at:
            place = self._kafka.TopicPartition
            self._consumer.assign([place(self._topic, x, start) for x, start in starts.items()])
            self._at = dict(starts)

    def _consume(self, number: int) -> list[Any]:
        messages = self._consumer.consume(number, timeout=_WAIT)
        for message in messages:
            if message.error():
                self._at = {}
                raise self._kafka.KafkaException(message.error())
        return messages

    def _message(self, message: Any) -> Message:
        place = f"{self._place}, partition {message.partition()}, offset {message.offset()}"
        return Message(place, message.value() or b"")

    def _segment(self, messages: list[Message], place: Any) -> Segment:
        segment = segment_of(messages, self._schema, lambda i: str(place(i)), _ADVICE)
        size = sum(len(message.content) for message in messages)
        self._messages = min(_MESSAGES, max(1, _BYTES * len(messages) // max(1, size)))
        self._known = (segment.note,)
        return segment


def _text(error: Any) -> str:
    return error.args[0].str()
