"""Topics of Kafka by the real client, with the brokers that librdkafka has for tests."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest
from brokers import MockKafka, json_messages
from polars.testing import assert_frame_equal
from stream_log import SCHEMA, log

from dlrm_jax.errors import UserError
from dlrm_jax.host_exchange import HostExchange
from dlrm_jax.stream.kafka_topic import KafkaTopic
from dlrm_jax.stream.led_topic import LedTopic
from dlrm_jax.stream.position import Position
from dlrm_jax.stream.rows import rows_of
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
    while sum(len(segment.frame) for segment in segments) < 30:
        segments.append(following(topic, after))
        after = end(segments[-1])
    assert len(segments) > 1
    rows = pl.concat(segment.frame for segment in segments)
    assert_frame_equal(rows, frame.select(NAMES)[:30], check_dtypes=False)
    assert sorted(x.note.name for x in segments) == [x.note.name for x in segments]
    assert topic.next(after) is None
    first = segments[0]
    position, note = first.position(3)
    assert position.ended
    other = KafkaTopic(kafka.url, SCHEMA, [note])
    rest = pl.concat([following(other, position).frame])
    assert_frame_equal(rest, frame.select(NAMES)[3 : 3 + len(rest)], check_dtypes=False)
    kafka.send(json_messages(frame[30:], [2, 1]))
    last = following(opened(kafka, segments[-1:]), after)
    position, note = last.position(1)
    assert (position.row, position.ended) == (1, False)
    again = following(KafkaTopic(kafka.url, SCHEMA, [note]), position)
    assert_frame_equal(again.frame, last.frame[:2])
    assert again.note == note


@pytest.mark.thorough
def test_all_partitions_are_read_once(kafka: MockKafka):
    frame = log(16)
    for partition in range(4):
        kafka.send(json_messages(frame[4 * partition :], [2] * 2), partition)
    topic, after, found = opened(kafka), None, []
    while sum(map(len, found)) < 16:
        segment = following(topic, after)
        # Stopped within a message, and gone on by another process.
        position, note = segment.position(1)
        topic = KafkaTopic(kafka.url, SCHEMA, [note])
        again = following(topic, position)
        assert again.note == note
        found.append(again.frame)
        after = end(again)
    assert after
    assert topic.next(after) is None
    rows = pl.concat(found)
    assert_frame_equal(rows.sort("t"), frame.select(NAMES), check_dtypes=False)
    assert after.segment.startswith("00000000000000000008:")
    assert after.segment.endswith(":0=2,1=2,2=2,3=2")


class Exchange(HostExchange):
    """One of two processes, each of which has a thread."""

    def __init__(self, index: int, boxes: list[queue.Queue[bytes]]):
        super().__init__(index, {})
        self.count, self._boxes = 2, boxes

    def all_to_all(self, messages: Sequence[bytes]) -> list[bytes]:
        self._boxes[1 - self.index].put(messages[1 - self.index])
        found = [messages[self.index]] * 2
        found[1 - self.index] = self._boxes[self.index].get(timeout=60)
        return found


@pytest.mark.thorough
def test_several_processes_read_the_order_of_process_0(kafka: MockKafka):
    frame, boxes = log(64), [queue.Queue[bytes]() for _ in range(2)]
    messages = [json_messages(frame[16 * i :], [1] * 16) for i in range(4)]
    for partition, own in enumerate(messages):
        kafka.send(own[:6], partition)

    def read(index: int) -> list[Segment]:
        topic, after, found = LedTopic(opened(kafka), Exchange(index, boxes)), None, []
        while sum(len(x.frame) for x in found) < 64:
            if not (segment := topic.next(after)):
                continue
            found.append(segment)
            if not index and len(found) == 2:
                for partition, own in enumerate(messages):
                    kafka.send(own[6:], partition)
            after = end(segment)
        return found

    with ThreadPoolExecutor() as both:
        first, second = both.map(read, range(2))
    assert len(first) > 2
    for one, other in zip(first, second, strict=True):
        assert_frame_equal(one.frame, other.frame)
        assert one.note.name == other.note.name
    rows = pl.concat(x.frame for x in first)
    assert_frame_equal(rows.sort("t"), frame.select(NAMES), check_dtypes=False)


def test_another_topic_of_that_name_is_an_error(kafka: MockKafka):
    kafka.send(json_messages(log(3), [3]))
    first = following(opened(kafka), None)
    far = Position(first.note.name.replace(":0=1", ":0=9"), 3, ended=True)
    with pytest.raises(UserError, match="up to offset 9, and the topic has offsets 0 to 1"):
        opened(kafka).next(far)
    anew = MockKafka()
    anew.send(json_messages(log(8, seed=1), [4, 4]))
    with pytest.raises(UserError, match="offset 0: the run has read this message"):
        opened(anew, [first]).next(end(first))


def test_a_message_without_a_value_has_no_rows(kafka: MockKafka):
    kafka.send([None, *json_messages(log(3), [3]), None])
    found, after, topic = 0, None, opened(kafka)
    while found < 3:
        segment = following(topic, after)
        found += sum(len(part) for part in rows_of(segment, SCHEMA))
        after = end(segment)
    kafka.send([None])
    assert following(topic, after).note.rows == 0


def test_a_topic_that_is_not_made_yet_is_waited_for(kafka: MockKafka):
    assert KafkaTopic(kafka.url, SCHEMA).next(None) is None


def test_what_brokers_say_in_passing_is_waited_for(
    kafka: MockKafka, monkeypatch: pytest.MonkeyPatch
):
    import confluent_kafka

    topic = opened(kafka)
    for code in (5, 6, 7, 13, -193):  # LEADER_NOT_AVAILABLE, …, _RESOLVE

        def away(*_: object, code: int = code) -> None:
            raise confluent_kafka.KafkaException(confluent_kafka.KafkaError(code))

        monkeypatch.setattr(topic, "_starts", away)
        with pytest.raises(UnreachableError):
            topic.next(None)


def test_malformed_messages_are_named(kafka: MockKafka):
    kafka.send([b"hello"], 2)
    with pytest.raises(UserError, match=r"partition 2, offset 0: expected JSON, .* got b'hello'"):
        following(opened(kafka), None)


@pytest.mark.parametrize(
    "url",
    [
        "kafka://localhost:9092",
        "kafka://localhost:9092/clicks?no.such=1",
        "kafka://user:secret@localhost/clicks",
        "kafka://[::1/clicks",
    ],
)
def test_urls_of_another_form(url: str):
    with pytest.raises(
        UserError, match=r"expected kafka://HOST:PORT/TOPIC.* mend the URL"
    ) as raised:
        KafkaTopic(url, SCHEMA)
    assert "secret" not in str(raised.value)


def test_positions_of_another_source():
    with pytest.raises(UserError, match="position in segment 'x' of another source"):
        KafkaTopic("kafka://localhost:1/clicks", SCHEMA).next(Position("x", 1, ended=True))


def test_brokers_that_are_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dlrm_jax.stream.kafka_topic._SECONDS", 0.2)
    with pytest.raises(UnreachableError, match="can't be reached"):
        KafkaTopic("kafka://localhost:1/clicks", SCHEMA).next(None)
