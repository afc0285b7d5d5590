"""Ids that are remembered are those of whole columns, and so are errors."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from criteo_lines import text
from hypothesis import given, settings
from hypothesis import strategies as st
from served import encoder_of

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.formats.criteo_text import CATEGORICALS, INTEGERS
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.serving import LogEncoder
from dlrm_jax.errors import UserError
from dlrm_jax.inference import known_ids
from dlrm_jax.inference.row_encoder import RowEncoder
from dlrm_jax.inference.rows import NAME, as_frame, with_shared

DENSE = {"p": "log", "q": "standardize", "r": "log_standardize", "s": "none", "t": "log"}
SCHEMA = Schema(
    "y",
    ("word", "number", "share", "flag", "seen", "tags", "bin", "also"),
    tuple(DENSE),
    {"seen": 2, "tags": 3},
    dense_transform=DENSE,
    bins={"bin": 3},
    shared={"also": "number"},
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LogEncoder:
    count = 40
    numbers = [i % 3 for i in range(count)]
    frame = pl.DataFrame(
        {
            "y": [0, 1] * (count // 2),
            "word": ["a", "b", "1", "", "True"] * (count // 5),
            "number": [*numbers[:-1], 2**60],
            "share": [0.5, 1.0, -0.0, math.nan] * (count // 4),
            "flag": [True, False] * (count // 2),
            "seen": [[1, 2], [3], [], None] * (count // 4),
            "tags": [["a", None], ["b"], [], ["1"]] * (count // 4),
            "bin": [float(i) for i in range(count)],
            "also": numbers,
            **{name: [0.25 * i for i in range(count)] for name in DENSE},
        }
    )
    directory = tmp_path_factory.mktemp("rows")
    frame.write_parquet(directory / "log.parquet")
    preprocess([directory / "log.parquet"], directory / "out", Options(SCHEMA))
    return encoder_of(directory / "out")


@pytest.fixture(scope="module")
def remembering(encoder: LogEncoder) -> RowEncoder:
    """An encoder that keeps what it learns from one example to the next."""
    return RowEncoder(encoder)


def whole(encoder: LogEncoder, rows: Any) -> Examples:
    return encoder.rows(as_frame(rows, encoder.columns, encoder.options.schema.numbers), NAME)


def outcome(call: Callable[..., Examples], *arguments: Any) -> Any:
    """What a call gives, so that outcomes can be compared; an error's message."""
    try:
        found = call(*arguments)
    except UserError as error:
        return str(error)
    ids = np.asarray(found.ids)
    return found.dense.tobytes(), found.dense.shape, ids.tolist(), ids.dtype, found.labels.shape


WORDS = st.sampled_from([None, "a", "b", "1", "", "True", "new", "x" * 200])
NUMBERS = st.sampled_from([None, 0, 1, 2, 7, -1])
ODD = st.sampled_from(
    [True, 1.0, -0.0, 0.5, 2.5, math.nan, math.inf, "2", "2.0", "a", 2**53 + 1, 2**64, 2**200,
     -(2**60), [], [1], ["a"], [None], [[1]], [True], (1, 2), np.int64(1), {}, b"a"]
)  # fmt: skip
DENSES = st.one_of(
    st.none(), st.integers(-5, 40), st.floats(allow_nan=True, allow_infinity=False, width=32)
)
USUAL: dict[str, Any] = {
    "word": WORDS,
    "number": NUMBERS,
    "also": NUMBERS,
    "share": st.sampled_from([None, 0.5, 1.0, -0.0, 0.0, math.nan, 1]),
    "flag": st.sampled_from([None, True, False]),
    "seen": st.none() | st.lists(NUMBERS, max_size=4),
    "tags": st.none() | st.lists(WORDS, max_size=4),
    "bin": st.sampled_from([None, 0, 1, 20, 2.5, 100.0]),
    **dict.fromkeys(DENSE, DENSES),
}


@st.composite
def requests(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows, of which one in a few has an odd value or lacks a column."""
    rows = draw(st.lists(st.fixed_dictionaries(USUAL), max_size=3))
    if rows and draw(st.booleans()):
        row, name = draw(st.sampled_from(rows)), draw(st.sampled_from([*USUAL]))
        row[name] = draw(ODD)
        if draw(st.integers(0, 9)) == 0:
            del row[name]
    return rows


@settings(max_examples=25, deadline=None)
@given(requests())
def test_rows_get_what_whole_columns_give(
    encoder: LogEncoder, remembering: RowEncoder, rows: list[dict[str, Any]]
):
    expected = outcome(whole, encoder, rows)
    assert outcome(remembering.rows, rows) == expected
    assert outcome(remembering.rows, rows) == expected


@settings(max_examples=10, deadline=None)
@given(requests(), st.sets(st.sampled_from([*USUAL])), st.fixed_dictionaries(USUAL))
def test_what_all_rows_share_is_as_in_each(
    encoder: LogEncoder,
    remembering: RowEncoder,
    rows: list[dict[str, Any]],
    names: set[str],
    values: dict[str, Any],
):
    shared = {name: values[name] for name in names}
    own = [{x: value for x, value in row.items() if x not in names} for row in rows]
    expected = outcome(whole, encoder, with_shared(own, shared))
    assert outcome(remembering.rows, own, shared) == expected


@pytest.mark.parametrize("name", ["p", "bin"])
def test_true_is_no_number(remembering: RowEncoder, name: str):
    row = dict.fromkeys(USUAL)
    for rows, shared in (([row | {name: True}], {}), ([row], {name: True})):
        own = [{x: value for x, value in each.items() if x not in shared} for each in rows]
        message = f"rows (from 0), row 0, column {name}: expected a number or None, got True"
        with pytest.raises(UserError, match=re.escape(message)):
            remembering.rows(own, shared)


def test_few_values_are_remembered(encoder: LogEncoder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_ids, "MOST", 3)
    few = RowEncoder(encoder)
    rows = [dict.fromkeys(USUAL) | {"word": x, "seen": [1, 2, 3], "p": 0.5} for x in "abcdefgh"]
    expected = outcome(whole, encoder, rows)
    for _ in range(2):
        assert outcome(few.rows, rows) == expected
        assert outcome(few.rows, [rows[0]]) == outcome(whole, encoder, rows[:1])
    assert all(len(x) <= 3 for x in few._known.values())


def test_threads_share_an_encoder(encoder: LogEncoder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_ids, "MOST", 2)
    shared = RowEncoder(encoder)
    rows = [dict.fromkeys(USUAL) | {"word": x, "number": i} for i, x in enumerate("abcd")]
    expected = [outcome(whole, encoder, [row]) for row in rows]
    wrong: list[int] = []

    def encode(start: int) -> None:
        for i in range(start, start + 20):
            if outcome(shared.rows, [rows[i % 4]]) != expected[i % 4]:
                wrong.append(i)

    threads = [threading.Thread(target=encode, args=[i]) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        *(
            pytest.param(options, marks=pytest.mark.thorough)
            for options in (Options(compatible="torchrec"), Options(multi_hot_sizes=(2,) * 26))
        ),
    ],
)
def test_criteos_columns(tmp_path: Path, options: Options):
    (tmp_path / "log").write_text(text(70))
    preprocess([tmp_path / "log"], tmp_path / "out", options)
    plain = encoder_of(tmp_path / "out")
    encoder = RowEncoder(plain)
    lines = [line.split("\t")[1:] for line in text(4).splitlines()]
    names = [*INTEGERS, *CATEGORICALS]
    rows = [
        {x: int(y) if y and x in INTEGERS else y or None for x, y in zip(names, line, strict=True)}
        for line in lines
    ]
    for each in (rows, rows[:1], rows[1:], [rows[0] | {"C3": "x"}], [rows[0] | {"I2": "x"}]):
        expected = outcome(whole, plain, each)
        assert outcome(encoder.rows, each) == expected


def test_many_new_values_are_forgotten_in_no_time():
    """As those of a column of 100,000 rows; one after the other, they took 5 seconds."""
    known = known_ids.Known()
    known.add({"first": 1})
    started = time.process_time()
    known.add({i: i for i in range(100_000)})
    assert time.process_time() - started < 1
    assert len(known) == known_ids.MOST
    assert known.of([99_999, 100_000 - known_ids.MOST, 0]) == [
        99_999,
        100_000 - known_ids.MOST,
        None,
    ]
    assert known.get("first") is None
