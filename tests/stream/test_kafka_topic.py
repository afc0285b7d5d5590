"""Topics of Kafka by the real client, with the brokers that librdkafka has for tests."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pytest
from brokers import MockKafka, json_messages
from polars.testing import assert_frame_equal
from stream_log import SCHEMA, log

from dlrm_jax.errors import UserError
from dlrm_jax.stream.kafka_topic import KafkaTopic
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.source import Segment, UnreachableError

NAMES = [*SCHEMA.columns]


@pytest.fixture
def kafka() -> MockKafka:
    return MockKafka()


def opened(kafka: MockKafka, segments: Sequence[Segment] = ()) -> KafkaTopic:
    return KafkaTopic(kafka.url, SCHEMA, tuple(segment.note for segment in segments))


def following(topic: KafkaTopic, after: Position | None) -> Segment:
    """The next segment, which may take some looks."""
    return next(x for x in (topic.next(after) for _ in range(50)) if x)


def end(segment: Segment) -> Position:
    return Position(segment.note.name, segment.note.rows, ended=True)


def test_messages_come_once_and_again_from_within_them(kafka: MockKafka):
    frame = log(40)
    kafka.send(json_messages(frame, [1] * 30))
    topic, after, segments = opened(kafka), None, []
    while sum(segment.note.rows for segment in segments) < 30:
        segments.append(following(topic, after))
        after = end(segments[-1])
    assert len(segments) > 1
    rows = pl.concat(segment.frame for segment in segments)
    assert_frame_equal(rows, frame.select(NAMES)[:30], check_dtypes=False)
    assert sorted(x.note.name for x in segments) == [x.note.name for x in segments]
    assert topic.next(after) is None
    first = segments[0]
    other = opened(kafka, [first])
    again = other.next(Position(first.note.name, 1, ended=False))
    assert again
    assert again.note == first.note
    assert_frame_equal(again.frame, first.frame)
    assert following(other, end(first)).note == segments[1].note
    kafka.send(json_messages(frame[30:], [2]))
    assert following(opened(kafka, segments[-1:]), after).note.rows == 2


def test_all_partitions_are_read(kafka: MockKafka):
    frame = log(12)
    for partition in range(4):
        kafka.send(json_messages(frame[3 * partition :], [1] * 3), partition)
    topic, after, found = opened(kafka), None, []
    while sum(map(len, found)) < 12:
        segment = following(topic, after)
        again = opened(kafka, [segment]).next(Position(segment.note.name, 1, ended=False))
        assert again
        assert_frame_equal(again.frame, segment.frame)
        found.append(segment.frame)
        after = end(segment)
    assert after
    assert topic.next(after) is None
    rows = pl.concat(found)
    assert_frame_equal(rows.sort("t"), frame.select(NAMES), check_dtypes=False)
    assert after.segment == "00000000000000000012:" + ",".join(
        f"{x}={end_ - count}-3" for x, (end_, count) in enumerate(_last_counts(after))
    )


def _last_counts(after: Position) -> list[tuple[int, int]]:
    parts = after.segment.partition(":")[2].split(",")
    ranges = [part.partition("=")[2].split("-") for part in parts]
    return [(int(last), int(last) - int(first)) for first, last in ranges]


def test_a_topic_of_fewer_messages_is_another_one(kafka: MockKafka):
    kafka.send(json_messages(log(3), [3]))
    topic = opened(kafka)
    first = following(topic, None)
    far = Position(first.note.name.replace("0=0-1", "0=0-9"), 3, ended=True)
    with pytest.raises(UserError, match="up to offset 9, and the topic has offsets 0 to 1"):
        topic.next(far)
    changed = Consumed(first.note.name, 3, first.note.size, "0")
    with pytest.raises(UserError, match="aren't those that were read"):
        KafkaTopic(kafka.url, SCHEMA, [changed]).next(Position(changed.name, 1, ended=False))


def test_a_partition_that_is_new_is_read_from_its_first_message_on(
    kafka: MockKafka, monkeypatch: pytest.MonkeyPatch
):
    kafka.send(json_messages(log(3), [3]))
    topic = opened(kafka)
    earlier = Position("1:0=0-1", 3, ended=True)  # there was one partition
    kafka.send(json_messages(log(2), [1, 1]), 1)
    assert following(topic, earlier).note.rows == 2
    bounds = KafkaTopic._bounds
    monkeypatch.setattr(  # no broker of the tests deletes
        KafkaTopic, "_bounds", lambda self, x: (1, 2) if x == 1 else bounds(self, x)
    )
    assert following(opened(kafka), None).note.rows >= 1, "nobody has read before"
    with pytest.raises(UserError, match=r"partition 1 up to offset 0, .* has offsets 1 to 2"):
        topic.next(earlier)


def test_malformed_messages_are_named(kafka: MockKafka):
    kafka.send([b"hello"], 2)
    with pytest.raises(UserError, match=r"partition 2, offset 0: expected JSON, .* got b'hello'"):
        following(opened(kafka), None)


def test_urls():
    with pytest.raises(UserError, match="expected kafka://HOST:PORT/TOPIC"):
        KafkaTopic("kafka://localhost:9092", SCHEMA)
    with pytest.raises(UserError, match="mend the URL"):
        KafkaTopic("kafka://localhost:9092/clicks?no.such=1", SCHEMA)
    with pytest.raises(UserError, match="position in segment 'x' of another source"):
        KafkaTopic("kafka://localhost:1/clicks", SCHEMA).next(Position("x", 1, ended=True))


def test_brokers_that_are_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dlrm_jax.stream.kafka_topic._SECONDS", 0.2)
    with pytest.raises(UnreachableError, match="can't be reached"):
        KafkaTopic("kafka://localhost:1/clicks", SCHEMA).next(None)
