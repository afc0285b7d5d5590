"""Rows as a stream of Arrow get the predictions of rows as JSON, and broken streams are refused."""

from __future__ import annotations

import datetime
import functools
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from clients import Client, serving

from dlrm_jax.errors import UserError
from dlrm_jax.serving.arrow_rows import MEDIA_TYPE, ArrowRows
from dlrm_jax.serving.http_messages import Limits

COLUMNS = {"age": pl.Float64, "page": pl.String, "city": pl.String, "word": pl.String}
ROWS: list[dict[str, Any]] = [
    {"age": None if i % 5 == 4 else i, "page": f"p{i}", "city": f"c{i % 4}", "word": None}
    for i in range(30)
]
FRAME = pl.DataFrame(ROWS, COLUMNS)


@pytest.fixture(scope="module")
def client(artifact: Path) -> Iterator[Client]:
    with serving(artifact, limits=Limits(body_bytes=200_000, rows=1000)) as client:
        yield client


def stream(frame: pl.DataFrame, **options: Any) -> bytes:
    found = io.BytesIO()
    frame.write_ipc_stream(found, **options)
    return found.getvalue()


def ask(client: Client, body: bytes, kind: str = MEDIA_TYPE) -> tuple[int, Any]:
    return client.ask("POST", "/predict", body, {"content-type": kind})[:2]


def test_predictions(client: Client):
    expected = client.predict(ROWS)[1]["predictions"]
    frames = {
        "wider": FRAME.with_columns(other=pl.lit(1)).select(reversed([*FRAME.columns, "other"])),
        "older": FRAME.with_columns(pl.col("age").cast(pl.Int8)),
        "text": FRAME.with_columns(pl.col("age").cast(pl.String)),
        "without type": FRAME.with_columns(word=pl.lit(None)),
    }
    for name, frame in frames.items():
        level = pl.CompatLevel.oldest() if name == "older" else pl.CompatLevel.newest()
        for _ in range(2):  # looked for, then remembered
            status, found = ask(client, stream(frame, compat_level=level), f"{MEDIA_TYPE}; x=y")
            assert status == 200, (name, found)
            np.testing.assert_allclose(found["predictions"], expected, rtol=1e-6)
    many = ask(client, stream(pl.concat([FRAME] * 30)))[1]  # beyond what the event loop reads
    np.testing.assert_allclose(many["predictions"], expected * 30, rtol=1e-6)


def view_of_lists(name: str, body: bytes) -> bytes:
    """The stream with another type of a column, which Polars panics at."""
    field = ArrowRows(body)._fields[name]
    changed = bytearray(body)
    changed[8 + field.Offset(8) + field.Pos] = 25
    return bytes(changed)


def test_columns_that_the_schema_lacks_may_be_of_any_type(client: Client):
    expected = ask(client, stream(FRAME))[1]["predictions"]
    time = pl.lit(datetime.datetime(2026, 1, 1), pl.Datetime("us", "UTC"))
    others = FRAME.select(
        struct=pl.struct("age", pl.struct("page")),
        lists=pl.concat_list(pl.concat_list("age")),
        array=pl.lit(pl.Series([[[1, 2]]], dtype=pl.Array(pl.Array(pl.Int8, 2), 1))).first(),
        category=pl.col("city").cast(pl.Categorical),
        categories=pl.struct(pl.col("page").cast(pl.Categorical)),
        binary=pl.col("page").cast(pl.Binary),
        decimal=pl.col("age").cast(pl.Decimal(10, 2)),
        zone=time,
    )
    for name in others.columns:
        for level in (pl.CompatLevel.oldest(), pl.CompatLevel.newest()):
            for frame in (others.select(name).hstack(FRAME), FRAME.with_columns(others[name])):
                body = stream(frame, compat_level=level).replace(b"UTC", b"UTX")
                assert ask(client, body) == (200, {"predictions": expected}), name
    assert ask(client, stream(FRAME.with_columns(others)))[0] == 200


def test_what_is_refused(client: Client):
    body, category = stream(FRAME), pl.col("city").cast(pl.Categorical)
    cities, nested = pl.Series("city", [["c1"]] * 30), pl.Series("x", [[[1]]] * 30)
    zoned = pl.lit(datetime.datetime(2026, 1, 1), pl.Datetime("us", "UTC"))
    listed, unknown_zone = pl.concat_list(zoned), "column 'page' has the unknown time zone 'UTX'"
    deep = functools.reduce(lambda x, _: pl.struct(x), range(17), pl.lit(1)).alias("x")
    file = io.BytesIO()
    FRAME.write_ipc(file)
    for given, status, message in (
        (stream(FRAME.drop("page")), 400, "there is no column 'page', only age, city, word; a mis"),
        (stream(FRAME.with_columns(page=1)), 400, "row 0, column page: expected values of type St"),
        (stream(FRAME.with_columns(age=pl.lit("x"))), 400, "row 0, column age: expected a finite"),
        (stream(FRAME.with_columns(age=datetime.date(2026, 1, 1))), 400, "column age: expected nu"),
        (
            stream(FRAME.with_columns(age=True)),
            400,
            "column age: expected numbers, got booleans",
        ),
        (stream(FRAME.with_columns(cities)), 400, "row 0, column city holds lists"),
        (stream(FRAME.with_columns(category)), 400, "column 'city' is a dictionary; send its valu"),
        (stream(FRAME.with_columns(page=pl.struct("age"))), 400, "column 'page': expected numbers"),
        (stream(FRAME.with_columns(nested.alias("page"))), 400, "column 'page': expected numbers"),
        (
            stream(FRAME.with_columns(pagf=1)).replace(b"pagf", b"page"),
            400,
            "two columns have the n",
        ),
        (stream(FRAME.with_columns(page=zoned)).replace(b"UTC", b"UTX"), 400, unknown_zone),
        (stream(FRAME.with_columns(page=listed)).replace(b"UTC", b"UTX"), 400, unknown_zone),
        (stream(FRAME.with_columns(deep)), 400, "column 'x' has too many levels"),
        (
            view_of_lists("x", stream(FRAME.with_columns(nested))),
            400,
            "column 'x' is a union, a list view or run-end enc",
        ),
        (stream(FRAME, compression="zstd"), 400, "it is compressed"),
        (stream(FRAME[:0]), 400, "expected at least one row, got none"),
        (stream(pl.concat([FRAME] * 34)), 413, "expected at most 1000 rows, got 1020"),
        (stream(pl.concat([FRAME] * 999)), 413, "expected a body of at most 200000 bytes"),
        (file.getvalue(), 400, "it is of the file format; write a stream"),
        (body + b"x", 400, "1 bytes are left behind it"),
        (body[:-8], 400, f"it is cut short or malformed at byte {len(body) - 8}"),
        (body[:-9], 400, "it is cut short: a message has"),
        (body[-8:], 400, "it has no schema"),
        (b'{"rows": []}', 400, "expected rows as an uncompressed stream of Arrow"),
    ):
        found = ask(client, given)
        assert (found[0], message in found[1]["error"]) == (status, True), found
    assert ask(client, body, "application/json")[0] == 400
    assert ask(client, body)[0] == 200


def test_no_byte_is_a_part_of_two_values():
    """A few bytes could stand for gigabytes."""

    def refused(body: bytes, before: bytes, after: bytes, message: str) -> None:
        names = ArrowRows(body).names
        ArrowRows(body).columns(names)["a"].to_list()
        start = body.rindex(before)
        changed = body[:start] + after + body[start + len(before) :]
        with pytest.raises(UserError, match=message):
            ArrowRows(changed).columns(names)

    def numbers(*values: int, size: int = 8) -> bytes:
        return b"".join(value.to_bytes(size, "little") for value in values)

    nothing = stream(pl.DataFrame({"a": [[None] * 100]}))
    many = numbers(10_000, 10_000)
    refused(nothing, numbers(100, 100), many, "a list column has more than .* values, the bytes of")
    columns = stream(pl.DataFrame({"a": [1] * 8, "b": [2] * 8}))
    refused(columns, numbers(64, 64), numbers(0, 128), "buffers overlap, or end behind their mess")
    texts = stream(pl.DataFrame({"a": ["x" * 1000, "y" * 1000]}))
    both = numbers(2000, size=4) + b"xxxx" + numbers(0, 0, size=4)
    first = numbers(1000, size=4) + b"xxxx" + numbers(0, 0, size=4)
    second = numbers(1000, size=4) + b"yyyy" + numbers(0, 1000, size=4)
    refused(texts, first + second, both * 2, "column 'a' has more bytes of text than the body")


@pytest.mark.parametrize("count", [500, pytest.param(3000, marks=pytest.mark.thorough)])
def test_damaged_bytes(count: int):
    """They are refused, or are other values; nothing else happens."""
    lists = (pl.Series("x", [[1, 2]] * 30), pl.Series("y", [["a", None]] * 30))
    frame = FRAME.with_columns(*lists, pl.Series("z", [True, None] * 15))
    chance = random.Random(0)
    bodies = [stream(frame[:3], compat_level=pl.CompatLevel.oldest()), stream(frame[:3])]
    decoded = 0
    for _ in range(count):
        body = bytearray(chance.choice(bodies))
        place = chance.randrange(len(body))
        if chance.random() < 0.5:
            body[place] ^= 1 << chance.randrange(8)
        else:
            number = chance.choice((-1, 2**62, 2**31 - 1, 2**32, 10**6))
            body[place & ~7 : (place & ~7) + 8] = number.to_bytes(8, "little", signed=True)
        try:
            rows = ArrowRows(bytes(body))
            if len(rows) <= 8192:
                decoded += len(rows.columns(rows.names)) > 0
        except UserError:
            pass
    assert 0 < decoded < count
