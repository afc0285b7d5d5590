from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis
from brokers import STREAM, json_messages, redis_server
from polars.testing import assert_frame_equal
from stream_log import SCHEMA, log

from dlrm_jax.data.preprocessing.raw_ids import RawIds
from dlrm_jax.errors import UserError
from dlrm_jax.stream.batches import StreamBatch, stream_batches
from dlrm_jax.stream.position import Position, Progress
from dlrm_jax.stream.redis_stream import RedisStream
from dlrm_jax.stream.rows import Rows, rows_of
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
    assert first.note.name < second.note.name
    # Another process gets the rest, also from within an entry.
    later = add(client, json_messages(frame[30:], [3, 2]))
    position, note = second.position(8)
    assert (position.row, position.ended) == (1, False)
    again = RedisStream(f"redis://localhost:{port}/{STREAM}", SCHEMA, [note]).next(position)
    assert again
    assert again.note == note == second.note
    assert_frame_equal(again.frame, second.frame[7:])
    third = opened(port, [second]).next(end(second))
    assert third
    assert _key(third) == later[-1]
    assert [_key(x) for x in third.of_messages()] == later
    client.xtrim(STREAM, minid=later[0], approximate=False)  # all that was read
    assert opened(port, [second]).next(end(second))
    position, note = third.position(4)
    client.xtrim(STREAM, minid=later[1], approximate=False)  # but for the entry of the position
    again = RedisStream(f"redis://localhost:{port}/{STREAM}", SCHEMA, [note]).next(position)
    assert again
    assert_frame_equal(again.frame, third.frame[3:])


def _key(segment: Segment) -> str:
    first, _, second = segment.note.name.partition(":")[0].partition("-")
    return f"{int(first)}-{int(second)}"


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
    ids = add(client, json_messages(frame, [1] * 3 + [2]))
    stream = opened(port)
    first = stream.next(None)
    assert first
    client.xtrim(STREAM, maxlen=0, approximate=False)
    assert stream.next(end(first)) is None
    add(client, json_messages(frame, [1] * 4))
    second = stream.next(end(first))
    assert second
    assert len(second.frame) == 4
    with pytest.raises(UserError, match=f"up to {ids[-1]}, and it is gone, and 1 of its rows"):
        opened(port, [first]).next(first.position(4)[0])
    add(client, json_messages(frame, [1] * 3))
    client.xtrim(STREAM, maxlen=1, approximate=False)
    with pytest.raises(UserError, match=r"2 later entries were trimmed unread.* another --workdir"):
        stream.next(end(second))
    client.delete(STREAM)
    with pytest.raises(UserError, match="there is no such stream any more"):
        stream.next(end(second))


def test_a_stream_that_was_made_anew_is_another_one(client: Any, port: int):
    frame = log(60)
    add(client, json_messages(frame, [1] * 40))
    stream = opened(port)
    first = stream.next(None)
    assert first
    assert len(first.frame) == 16
    client.delete(STREAM)
    add(client, json_messages(frame, [1] * 20))
    with pytest.raises(UserError, match="the stream has lost 0 entries alone"):
        stream.next(end(first))
    # A server that has lost its last entries, and gets others with the same ids.
    client.flushall()
    for i in range(10):
        client.xadd(STREAM, {"value": json_messages(frame[i:], [1])[0]}, id=f"{1000 + i}-0")
    first = opened(port).next(None)
    assert first
    client.flushall()
    for i in range(7, 12):
        client.xadd(STREAM, {"value": json_messages(frame[20 + i :], [1])[0]}, id=f"{1000 + i}-0")
    with pytest.raises(UserError, match="entry 1009-0: the run has read this message"):
        opened(port, [first]).next(end(first))
    client.flushall()
    for i in range(7):
        client.xadd(STREAM, {"value": json_messages(frame[i:], [1])[0]}, id=f"{1000 + i}-0")
    with pytest.raises(UserError, match="up to 1009-0, and it isn't there, though entries before"):
        opened(port, [first]).next(end(first))


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


def test_deleted_and_trimmed_entries_that_may_be_lost_are_said(
    client: Any, port: int, capfd: pytest.CaptureFixture[str]
):
    frame = log(60)
    ids = add(client, json_messages(frame, [1] * 40))
    stream = opened(port)
    first = stream.next(None)
    assert first
    client.xdel(STREAM, ids[20])
    client.xtrim(STREAM, minid=ids[16], approximate=False)  # all that was read
    second = stream.next(end(first))
    assert second
    assert len(second.frame) == 23
    assert "1 later entries than" in capfd.readouterr().out
    client.xtrim(STREAM, maxlen=0, approximate=False)
    assert stream.next(end(second)) is None
    assert not capfd.readouterr().out


GOOD = '{"click":1,"price":1,"user":1,"item":1,"tags":[],"w":1,"t":1}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"click": 1', "expected JSON, a row a line"),
        ("", "has no rows, or|no row"),
        ("  ", "there is no row"),
        (GOOD.replace('"user":1,', ""), "it has no 'user'; write null"),
        (GOOD.replace('"user":1', '"user":0.5'), "user is a number with a point"),
        (GOOD.replace('"user":1', '"user":[3]'), "user is an object or a list"),
        (GOOD.replace('"tags":[]', '"tags":"a"'), "tags isn't a list"),
        (GOOD.replace('"tags":[]', '"tags":[[1]]'), "tags is an object or a list"),
        (GOOD.replace('"click":1', '"click":null'), "click"),
        (GOOD.replace('"price":1', '"price":"x"'), "price isn't a number"),
        (GOOD.replace('"item":1', '"item":"x\\ud83d"'), "expected JSON"),
        (GOOD.replace('"item":1', '"item":"\udcff"'), "it isn't UTF-8"),
        (GOOD + "\n" + GOOD.replace('"t":1', '"t":"2026-01-01"'), "t is text and numbers"),
        ("[" * 100_000, "expected JSON"),
    ],
)
def test_malformed_entries_are_named(client: Any, port: int, text: str, message: str):
    _, number, _ = add(
        client, [GOOD.encode(), text.encode(errors="surrogateescape"), GOOD.encode()]
    )
    if not text:
        segment = opened(port).next(None)
        assert segment
        assert segment.ends == (1, 1, 2)
        return
    with pytest.raises(UserError, match=message) as raised:
        read(port)
    assert number in str(raised.value)


def read(port: int) -> list[Rows]:
    segment = opened(port).next(None)
    assert segment
    return [*rows_of(segment, SCHEMA)]


def test_what_is_read_together_makes_no_difference(client: Any, port: int):
    frame = log(3).with_columns(user=pl.Series([2**62 + 1, 2, 3]), other=pl.lit(1))
    rows = [*GOOD_ROWS, *(json.dumps(x) for x in frame.to_dicts())]
    parts: list[bytes] = [row.encode() for row in rows]
    for types in ({}, {"user": pl.Float64}, {"t": pl.Int64}, {"user": pl.Boolean}):
        file = io.BytesIO()
        frame[1:].cast(types).write_parquet(file)  # pyright: ignore[reportArgumentType]
        parts.append(file.getvalue())

    def ids() -> list[tuple[int, ...]]:
        stream, after, found = opened(port), None, []
        while segment := stream.next(after):
            for part in rows_of(segment, SCHEMA):
                found += map(tuple, part.raw.ids.tolist())
            after = end(segment)
        return found

    add(client, parts)
    together = ids()
    apart = []
    for part in parts:
        client.flushall()
        add(client, [part])
        apart += ids()
    assert together == apart
    assert len(together) == len(rows) + 8


GOOD_ROWS = [
    GOOD,
    GOOD.replace('"user":1', '"user":"1","user":"a"').replace("[]", '["x", 7, null]'),
    GOOD.replace('"user":1', '"user":7.0').replace('"w":1', '"w":1,"extra":true'),
    GOOD.replace('"user":1', f'"user":{2**64 - 1}').replace('"w":1', '"w":1,"extra":{}'),
    GOOD.replace('"user":1', '"user":true').replace('"t":1', '"t":"2026-01-01T00:00:00"'),
    GOOD.replace('"user":1', '"user":null').replace("[]", "null"),
]


def test_an_entry_without_the_field(client: Any, port: int):
    client.xadd(STREAM, {"user": 1, "click": 0})
    with pytest.raises(UserError, match=r"expected the field 'value' .* got user, click"):
        opened(port).next(None)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@localhost:6379",
        "redis://localhost:6379/clicks?db=none",
        "redis://localhost:abc/clicks",
        "redis://[::1/clicks",
        "redis://localhost/clicks?foo=x",
        "redis://localhost/clicks?decode_responses=1",
        "redis://:pa/secret@localhost/clicks",
        "redis://localhost/clicks?ssl_cert_reqs=none",
        "rediss://localhost/clicks?ssl_foo=1",
        "rediss://localhost/clicks?ssl_cert_reqs=foo",
    ],
)
def test_urls_of_another_form(url: str):
    with pytest.raises(UserError, match="expected redis://HOST:PORT/KEY") as raised:
        RedisStream(url, SCHEMA)
    assert "secret" not in str(raised.value)


def test_positions_of_another_source():
    after = Position("s000.parquet", 3, ended=True)
    with pytest.raises(UserError, match=r"position in segment 's000.parquet' of another source"):
        opened(1).next(after)


def test_a_server_that_is_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frame, said = log(8), []
    with redis_server(tmp_path) as port:
        with redis.Redis(port=port) as client:
            add(client, json_messages(frame, [4]))
        batches = stream_batches(
            opened(port), SCHEMA, _rows, 4, Progress(), pause=lambda _: None, say=said.append
        )
        assert isinstance(next(batches), StreamBatch)
    with pytest.raises(UnreachableError):
        opened(port).next(None)
    assert [next(batches) for _ in range(20)] == [0.0] * 20  # idle time stands still
    with redis_server(tmp_path, port):
        with redis.Redis(port=port) as client:
            add(client, json_messages(frame[4:], [4]))
        second = next(x for x in batches if isinstance(x, StreamBatch))
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
        assert not isinstance(raised.value, UnreachableError)
        assert "secret" not in str(raised.value)
        assert f"localhost:{port}/{STREAM}" in str(raised.value)
        with pytest.raises(UserError, match="asks for a password; write :PASSWORD@ or USER:"):
            RedisStream(url.replace(":secret@", ""), SCHEMA).next(None)
