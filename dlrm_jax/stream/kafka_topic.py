"""A topic of Kafka, all its partitions: a segment is the messages that were read at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import xxhash

from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.segment_frame import frame_of_messages
from dlrm_jax.stream.source import Segment, UnreachableError

_MESSAGES = 10_000  # of a segment, at most
_BYTES = 1 << 26  # of a segment, about
_WAIT = 0.2  # seconds for new messages
_SECONDS = 10.0  # for an answer of the brokers
_ADVICE = "no message can be removed from a topic: write a topic without it"


@dataclasses.dataclass(frozen=True)
class _Offsets:
    """The messages of a segment.

    Attributes:
        number: number of messages that were read, up to the last one of the segment.
        ranges: first offset and the one behind the last, by partition.
    """

    number: int
    ranges: Mapping[int, tuple[int, int]]

    def __str__(self) -> str:
        own = ",".join(f"{x}={first}-{end}" for x, (first, end) in sorted(self.ranges.items()))
        return f"{self.number:020d}:{own}"

    @classmethod
    def of(cls, name: str) -> _Offsets:
        """The messages that a segment's name says.

        Raises:
            UserError: it is the name of a segment of another source.
        """
        try:
            number, own = name.split(":")
            ranges = {}
            for each in own.split(","):
                partition, offsets = each.split("=")
                first, end = offsets.split("-")
                ranges[int(partition)] = int(first), int(end)
            return cls(int(number), ranges)
        except ValueError as error:
            raise UserError(
                f"stream: expected a run on a topic of Kafka, got a position in segment {name!r} "
                f"of another source; give another --workdir"
            ) from error


class KafkaTopic:
    """The messages of a topic. The order of those of one partition is kept.

    The rows of a message are its value, see `frame_of_messages`. Messages may be deleted when the
    oldest checkpoint has their rows; others that are deleted are an error. No offsets are
    committed: the checkpoints have them.

    Args:
        url: ``kafka://HOST:PORT,HOST:PORT/TOPIC?SETTING=VALUE``, with settings of librdkafka such
            as ``security.protocol=SSL``.
        schema: meaning of the columns.
        consumed: segments that were read before, as a checkpoint notes them.

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
        parts = urlsplit(url)
        self._topic = parts.path.removeprefix("/")
        if not self._topic or not parts.netloc:
            raise UserError(
                f"stream: expected kafka://HOST:PORT/TOPIC, got {parts.scheme}://{parts.netloc}"
                f"{parts.path}; name the topic, such as kafka://localhost:9092/clicks"
            )
        self._place = f"kafka://{parts.netloc}/{self._topic}"
        self._kafka = confluent_kafka
        settings = {
            "bootstrap.servers": parts.netloc,
            "group.id": "dlrm_jax",  # which is asked for, and not used
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "log_level": 2,
            **dict(parse_qsl(parts.query)),
        }
        try:
            self._consumer = confluent_kafka.Consumer(settings)
        except confluent_kafka.KafkaException as error:
            raise UserError(f"stream: {self._place}: {_text(error)}; mend the URL") from error
        self._schema = schema
        self._last = {each.name: each for each in consumed}
        self._at: dict[int, int] = {}  # offset that is read next, by partition
        self._messages = 16

    @property
    def consumed(self) -> tuple[Consumed, ...]:
        """The segment that was read last; messages don't change."""
        return tuple(self._last.values())

    def next(self, after: Position | None) -> Segment | None:
        """The messages behind a position, see `Source`."""
        before = _Offsets.of(after.segment) if after else None
        try:
            if before and after and not after.ended:
                return self._again(before, after)
            return self._following(before)
        except self._kafka.KafkaException as error:
            kind = self._kafka.KafkaError
            if error.args[0].code() in (kind._TRANSPORT, kind._ALL_BROKERS_DOWN, kind._TIMED_OUT):
                raise UnreachableError(
                    f"stream: {self._place} can't be reached: {_text(error)}"
                ) from error
            raise UserError(f"stream: {self._place}: {_text(error)}") from error

    def _following(self, before: _Offsets | None) -> Segment | None:
        """The messages behind those of a range, as many as come at once."""
        known = {x: end for x, (_, end) in before.ranges.items()} if before else {}
        starts: dict[int, int] = {}
        for partition in self._partitions():
            low, high = self._bounds(partition)
            # A partition that is new since the position was never read: from its first message on.
            starts[partition] = known.get(partition, 0 if before else low)
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
        self._assign(starts)
        messages = self._consume(self._messages)
        if not messages:
            return None
        ends = {**starts, **{x.partition(): x.offset() + 1 for x in messages}}
        self._at = ends
        number = (before.number if before else 0) + len(messages)
        ranges = {x: (start, ends[x]) for x, start in starts.items()}
        return self._segment(str(_Offsets(number, ranges)), messages)

    def _again(self, range_: _Offsets, after: Position) -> Segment:
        """The messages of a range of which not all rows were trained on."""
        left = {x: (first, end) for x, (first, end) in range_.ranges.items() if first < end}
        self._assign({x: first for x, (first, _) in left.items()})
        messages: list[Any] = []
        until = time.monotonic() + _SECONDS
        while left and time.monotonic() < until:
            for message in self._consume(_MESSAGES):
                partition, offset = message.partition(), message.offset()
                if partition in left and offset < left[partition][1]:
                    messages.append(message)
                    if offset + 1 == left[partition][1]:
                        del left[partition]
        self._at = {}
        if left:
            raise UserError(
                f"stream: {self._place}: {after.row:,} rows of {range_} were read, and its "
                f"messages of partition {min(left)} can't be read again; give another --workdir "
                f"to start anew"
            )
        return self._segment(after.segment, messages)

    def _partitions(self) -> list[int]:
        found = self._consumer.list_topics(self._topic, timeout=_SECONDS).topics[self._topic]
        if found.error is not None:
            raise self._kafka.KafkaException(found.error)
        return sorted(found.partitions)

    def _bounds(self, partition: int) -> tuple[int, int]:
        """The first offset that is there, and the one behind the last."""
        place = self._kafka.TopicPartition(self._topic, partition)
        bounds = self._consumer.get_watermark_offsets(place, timeout=_SECONDS)
        if bounds is None:
            raise self._kafka.KafkaException(
                self._kafka.KafkaError(self._kafka.KafkaError._TIMED_OUT)
            )
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

    def _segment(self, name: str, messages: list[Any]) -> Segment:
        messages = sorted(messages, key=lambda x: (x.partition(), x.offset()))
        places = [
            f"{self._place}, partition {x.partition()}, offset {x.offset()}" for x in messages
        ]
        contents = [x.value() or b"" for x in messages]
        size, sums = sum(map(len, contents)), xxhash.xxh3_128()
        for content in contents:
            sums.update(len(content).to_bytes(8, "little") + content)
        known = self._last.get(name)
        if known and (known.size, known.checksum) != (size, sums.hexdigest()):
            raise UserError(
                f"stream: {self._place}: the messages of {name} aren't those that were read: they "
                f"had {known.size:,} bytes, and have {size:,}, or others; give another --workdir"
            )
        frame = frame_of_messages(places, contents, self._schema, _ADVICE)
        self._messages = min(_MESSAGES, max(1, _BYTES * len(messages) // max(1, size)))
        note = Consumed(name, len(frame), size, sums.hexdigest())
        self._last = {name: note}
        return Segment(f"{self._place}, {name}", note, frame)


def _text(error: Any) -> str:
    return error.args[0].str()
