from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis
from brokers import STREAM, json_messages, redis_server
from polars.testing import assert_frame_equal
from stream_log import SCHEMA, log

from dlrm_jax.errors import UserError
from dlrm_jax.stream.batches import stream_batches
from dlrm_jax.stream.position import Position, Progress
from dlrm_jax.stream.raw_ids import RawIds
from dlrm_jax.stream.redis_stream import RedisStream
from dlrm_jax.stream.source import Segment, UnreachableError


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with redis_server(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with redis.Redis(port=port) as client:
        client.flushall()
        yield client


def add(client: Any, contents: Sequence[bytes]) -> list[str]:
    return [client.xadd(STREAM, {"value": content}).decode() for content in contents]


def opened(port: int, segments: Sequence[Segment] = ()) -> RedisStream:
    notes = tuple(segment.note for segment in segments)
    return RedisStream(f"redis://localhost:{port}/{STREAM}", SCHEMA, notes)


def end(segment: Segment) -> Position:
    return Position(segment.note.name, segment.note.rows, ended=True)


def test_rows_of_entries_come_in_order_whatever_their_format(client: Any, port: int):
    frame = log(40)
    names = [*SCHEMA.columns]
    add(client, json_messages(frame, [3, 1, 1]))
    stream = opened(port)
    first = stream.next(None)
    assert first
    assert_frame_equal(first.frame, frame.select(names)[:5], check_dtypes=False)
    assert stream.next(end(first)) is None
    file = io.BytesIO()
    frame[5:12].with_columns(other=pl.lit("unread")).write_parquet(file)
    add(client, [file.getvalue()])
    file = io.BytesIO()
    frame[12:14].write_ipc(file)
    add(client, [file.getvalue()])
    second = stream.next(end(first))
    assert second
    assert_frame_equal(second.frame, frame.select(names)[5:14], check_dtypes=False)
    assert stream.consumed == (second.note,)
    assert first.note.name < second.note.name
    # Another process gets the same entries, also from within them.
    later = add(client, json_messages(frame, [2]))
    again = opened(port, [second]).next(Position(second.note.name, 3, ended=False))
    assert again
    assert again.note == second.note
    assert_frame_equal(again.frame, second.frame)
    third = opened(port, [second]).next(end(second))
    assert third
    assert third.note.name.endswith(f":{later[0]}")


def test_many_entries_are_several_segments_without_a_gap(client: Any, port: int):
    frame = log(300)
    add(client, json_messages(frame, [1] * 300))
    stream, after, frames = opened(port), None, []
    while segment := stream.next(after):
        frames.append(segment.frame)
        after = end(segment)
    assert len(frames) > 1
    assert_frame_equal(pl.concat(frames), frame.select([*SCHEMA.columns]), check_dtypes=False)


def test_trimming_what_was_read_is_right_and_what_was_not_is_an_error(client: Any, port: int):
    frame = log(20)
    ids = add(client, json_messages(frame, [1] * 4))
    stream = opened(port)
    first = stream.next(None)
    assert first
    client.xtrim(STREAM, maxlen=0, approximate=False)
    assert stream.next(end(first)) is None
    add(client, json_messages(frame, [1] * 4))
    second = stream.next(end(first))
    assert second
    assert len(second.frame) == 4
    with pytest.raises(UserError, match=f"up to {ids[-1]}, and they are gone, and 2 rows"):
        opened(port, [first]).next(Position(first.note.name, 2, ended=False))
    add(client, json_messages(frame, [1] * 3))
    client.xtrim(STREAM, maxlen=1, approximate=False)
    with pytest.raises(UserError, match=r"2 later ones are gone, unread.* give another --workdir"):
        stream.next(end(second))
    client.delete(STREAM)
    with pytest.raises(UserError, match="there is no such stream any more"):
        stream.next(end(second))
    add(client, json_messages(frame, [1]))
    with pytest.raises(UserError, match="it has had 1 entries"):
        stream.next(end(second))


def test_a_deleted_entry_is_left_out_and_no_gap(client: Any, port: int):
    frame = log(20)
    add(client, json_messages(frame, [1] * 2))
    stream = opened(port)
    first = stream.next(None)
    assert first
    bad = client.xadd(STREAM, {"value": "hello"}).decode()
    add(client, json_messages(frame, [1]))
    with pytest.raises(UserError, match=f"entry {bad}: expected JSON.* delete the entry with XDEL"):
        stream.next(end(first))
    client.xdel(STREAM, bad)
    second = stream.next(end(first))
    assert second
    assert len(second.frame) == 1
    client.xtrim(STREAM, maxlen=0, approximate=False)
    assert stream.next(end(second)) is None


LARGE = 2**63 - 25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"click": 1', "expected JSON, a row a line"),
        ("", "expected JSON, a row a line"),
        ('{"click": 1, "price": 1, "item": 1, "tags": [], "w": 1, "t": 1}', "has no 'user'"),
        (
            f'{{"click":1,"price":1,"user":{LARGE},"item":1,"tags":[],"w":1,"t":1}}\n'
            '{"click":1,"price":1,"user":0.5,"item":1,"tags":[],"w":1,"t":1}',
            "column user: expected integers or text, got numbers with a point",
        ),
        (
            '{"click":1,"price":1,"user":[3],"item":1,"tags":[],"w":1,"t":1}',
            "column user: groups need one number",
        ),
    ],
)
def test_malformed_entries_are_named(client: Any, port: int, text: str, message: str):
    (number,) = add(client, [text.encode()])
    with pytest.raises(UserError, match=message) as raised:
        opened(port).next(None)
    assert number in str(raised.value)


def test_an_entry_without_the_field(client: Any, port: int):
    client.xadd(STREAM, {"user": 1, "click": 0})
    with pytest.raises(UserError, match=r"expected the field 'value' .* got user, click"):
        opened(port).next(None)


def test_urls_that_name_no_stream():
    with pytest.raises(UserError, match=r"expected redis://HOST:PORT/KEY, got redis://:?localhost"):
        RedisStream("redis://:secret@localhost:6379", SCHEMA)
    with pytest.raises(UserError, match="mend the URL"):
        RedisStream("redis://localhost:6379/clicks?db=none", SCHEMA)
    after = Position("s000.parquet", 3, ended=True)
    with pytest.raises(UserError, match=r"position in segment 's000.parquet' of another source"):
        opened(1).next(after)


def test_a_server_that_is_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frame, said = log(8), []
    with redis_server(tmp_path) as port:
        with redis.Redis(port=port) as client:
            add(client, json_messages(frame, [4]))
        batches = stream_batches(
            opened(port), SCHEMA, _rows, 4, Progress(), 0.05, pause=lambda _: None, say=said.append
        )
        first = next(batches)
        assert first
    with pytest.raises(UnreachableError):
        opened(port).next(None)
    assert [next(batches) for _ in range(20)] == [None] * 20  # idle time stands still
    with redis_server(tmp_path, port):
        with redis.Redis(port=port) as client:
            add(client, json_messages(frame[4:], [4]))
        second = next(x for x in batches if x)
        assert second.progress.examples == 8
        assert len(said) == 2
        assert "can't be reached" in said[0]
        assert said[1] == "the stream can be reached again"
    monkeypatch.setattr("dlrm_jax.stream.batches._PATIENCE", 0.01)
    with pytest.raises(UnreachableError):
        for _ in batches:
            pass


def _rows(raw: RawIds) -> Any:
    return (raw.ids % 7).astype("int32")


def test_passwords_are_in_no_message(tmp_path: Path):
    with redis_server(tmp_path, 0, "--requirepass", "secret") as port:
        url = f"redis://:secret@localhost:{port}/{STREAM}"
        assert RedisStream(url, SCHEMA).next(None) is None
        with pytest.raises(UserError) as raised:
            RedisStream(url.replace("secret", "secret2"), SCHEMA).next(None)
        assert "secret" not in str(raised.value)
        assert f"localhost:{port}/{STREAM}" in str(raised.value)
