"""Logs as text with other separators, without a header, and with numbers for labels."""

import csv
import dataclasses
import gc
import io
import json
import threading

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import encode_logs, encoder_of

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats.csv_text import Records
from dlrm_jax.data.formats.dialect import STAND_IN, Dialect
from dlrm_jax.data.formats.lines import whole_lines
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.sources import Source
from dlrm_jax.errors import UserError

NAMES = ("user", "item", "stars", "time")
STARS = Schema("stars", ("user", "item"), label_at_least={"stars": 4}, header=NAMES)


def frame_of(content: bytes, path, dialect: Dialect) -> pl.DataFrame:
    found = Records(whole_lines(io.BytesIO(content).read, path, 7), path, "stop", dialect)
    return pl.concat(found.frames(found.columns, 3))


TEXT = st.text(st.characters(exclude_characters=STAND_IN, exclude_categories=["Cs"]), max_size=5)
SEPARATORS = st.sampled_from(["\t", ";", "|", "\x01", " ", "::", "||", "\t|\t", "ab", STAND_IN])


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), SEPARATORS, st.booleans())
def test_what_is_written_is_read(tmp_path_factory, rows, separator, named):
    written = io.StringIO(newline="")
    # Quotes around all fields: Python's writer doesn't know which ones a long separator needs.
    writer = csv.writer(written, delimiter=STAND_IN, quoting=csv.QUOTE_ALL)
    writer.writerows([*[("a", "b")] * named, *rows])
    content = written.getvalue().replace(f'"{STAND_IN}"', f'"{separator}"').encode()
    path = tmp_path_factory.getbasetemp() / "log"
    found = frame_of(content, path, Dialect(separator, () if named else ("x", "y")))
    assert found.columns == (["a", "b"] if named else ["x", "y"])
    missing = ("", "NA", "NaN", "nan", "null")
    assert found.rows() == [tuple(None if x in missing else x for x in row) for row in rows]


def test_a_long_separator_takes_the_first_place_it_fits(tmp_path):
    content = b'1::"a::b"::5::7\r\n2:::b:::4::8\n3::"say ""::"""::3::9'
    found = frame_of(content, tmp_path, Dialect("::", NAMES))
    items, stars = ["a::b", ":b", 'say "::"'], ["5", ":4", "3"]
    assert [found[name].to_list() for name in ("item", "stars")] == [items, stars]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1::a::5", "line 2: expected 4 fields as in .*, found 3; fields are separated by '::'"),
        ("1::a::b::5::7", "line 2: expected 4 fields as in .*, found 5"),
        ("1,a,5,7", "line 2: expected 4 fields as in .*, found 1"),
        ("", "line 2: expected 4 fields as in .*, found a blank line"),
        ('1::"a"b::5::7', "line 2: '::' expected after '\"'; expected fields separated by '::'"),
        ('1::"a::5::7', "line 2: a quote begins in this record, and the file ends before"),
        (f"1::a::{STAND_IN}5::7", r"line 2: found the character '\\x1f', which can't be read"),
    ],
)
def test_malformed_lines_are_named(tmp_path, named, line, message):
    first = "::".join(NAMES) if named else "9::b::1::3"
    with pytest.raises(UserError, match=message):
        frame_of(f"{first}\n{line}\n".encode(), tmp_path, Dialect("::", () if named else NAMES))


@pytest.mark.parametrize("file", ["user::item::stars::time\n1::2::3::4\n", "1::2::3::4\n"])
def test_a_header_belongs_either_to_the_file_or_to_the_schema(tmp_path, file):
    """Both is one error and neither another one, before rows are read."""
    (tmp_path / "log.txt").write_text(file)
    both = file.startswith("user")
    schema = dataclasses.replace(STARS, separator="::", header=NAMES if both else ())
    expected = "line 1: expected a record, got the names of the columns; leave out the schema's"
    if not both:
        expected = "expected the names of columns in line 1, separated by '::', such as 'user', got"
    with pytest.raises(UserError, match=expected):
        preprocess([tmp_path / "log.txt"], tmp_path / "out", Options(schema))


def rows_of(count: int) -> list[tuple]:
    rng = np.random.default_rng(0)
    stars = [str(x / 2) for x in rng.integers(1, 11, count)]
    return [(f"u{i % 5}", f"{i % 7:03}", x, 100 + i) for i, x in enumerate(stars)]


def write(path, rows, separator="\t"):
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("separator", ["\t", "::"])
def test_all_that_reads_logs_reads_them(tmp_path, separator):
    """Vocabularies, labels, predictions with keys, and vocabularies that grow."""
    schema = dataclasses.replace(STARS, separator=separator)
    rows = rows_of(70)
    log = write(tmp_path / "log.txt", rows, separator)
    preprocess([log], tmp_path / "out", Options(schema))
    train = load_directory(tmp_path / "out").train
    labels = [float(float(row[2]) >= 4) for row in rows[: len(train)]]
    assert train.labels[:].tolist() == labels
    assert 0 < sum(labels) < len(labels)

    # Labels of new logs may be missing or malformed; keys pass through.
    new = [("u1", "001", "4.5", 1), ("u1", "x", "3", 2), ("new", "001", "", 3), ("", "", "?", 4)]
    (found,) = encode_logs([write(tmp_path / "new.txt", new, separator)], tmp_path / "out")
    assert np.asarray(found.labels).tolist()[:2] == [1, 0]
    assert np.isnan(np.asarray(found.labels)[2:]).all()
    ids = np.asarray(found.ids).tolist()
    assert ids[1:] == [[ids[0][0], 0], [0, ids[0][1]], [1, 1]]
    (chunk,) = encoder_of(tmp_path / "out").files([tmp_path / "new.txt"], ["time"])
    assert chunk.keys["time"].to_list() == ["1", "2", "3", "4"]

    grown = preprocess(
        [write(tmp_path / "next.txt", [*[("u9", "009", "5", 1)] * 9, *rows], separator)],
        tmp_path / "more",
        Options(schema),
        grow=tmp_path / "out",
    )
    assert [n - m for n, m in zip(grown.table_rows, Metadata.read(tmp_path / "out").table_rows,
                                  strict=True)] == [1, 1]  # fmt: skip


def test_labels_of_parquet_may_be_numbers(tmp_path):
    frame = pl.DataFrame(rows_of(70), ["user", "item", "stars", "time"], orient="row")
    frame = frame.with_columns(pl.col("stars").cast(pl.Float32))
    frame.write_parquet(tmp_path / "log.parquet")
    write(tmp_path / "log.txt", rows_of(70))
    schema = dataclasses.replace(STARS, separator="\t")
    for name in ("log.parquet", "log.txt"):
        preprocess([tmp_path / name], tmp_path / f"{name} out", Options(schema))
    one, other = (load_directory(tmp_path / f"log.{x} out").train for x in ("parquet", "txt"))
    np.testing.assert_array_equal(one.labels[:], other.labels[:])

    bad = frame.with_columns(stars=pl.col("stars") > 3)
    bad.write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=r"column stars: expected numbers, .* got booleans"):
        preprocess([tmp_path / "bad.parquet"], tmp_path / "bad", Options(schema))


@pytest.mark.parametrize("value", ["many", "true", "inf", "NA", ""])
def test_a_label_that_is_no_number_is_named(tmp_path, value):
    rows = [*rows_of(2), ("u", "1", value, 0)]
    write(tmp_path / "log.txt", rows)
    schema = dataclasses.replace(STARS, separator="\t")
    with pytest.raises(UserError, match="row 3, column stars: expected a finite number, got"):
        preprocess([tmp_path / "log.txt"], tmp_path / "out", Options(schema))


MINIMAL = {"label": "stars", "categorical": ["user"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"separator": ""}, "separator: expected the text between two fields.*got ''"),
        ({"separator": 9}, "separator: expected the text between two fields.*got 9"),
        ({"separator": '"'}, "separator must be without '\"'"),
        ({"separator": "\r\n"}, r"separator must be without '\\n'"),
        ({"separator": STAND_IN * 2}, r"separator must be without '\\x1f'"),
        ({"header": []}, "header: expected names of columns, got none"),
        ({"header": "user,stars"}, "header: expected a list of names, got 'user,stars'"),
        ({"header": ["user", 7]}, r"header: expected a list of names, got \['user', 7\]"),
        ({"header": None}, "header: expected a list of names, got None"),
        ({"header": ["user", ""]}, "header: expected a name for each column, got ''"),
        ({"header": ["user", "stars", "user"]}, "header: 'user' is there twice"),
        ({"separator": ";", "layout": "criteo"}, "separator and header are for the layout named"),
        ({"label_at_least": "4"}, "label_at_least: expected a number for the only label, or"),
        ({"label_at_least": True}, "label_at_least: .* got True"),
        ({"label_at_least": {"stars": None}}, "label_at_least: .* of stars .* got None"),
        ({"label_at_least": {"stars": float("nan")}}, "label_at_least: .* of stars .* got nan"),
        ({"label_at_least": {"stars": 10**400}}, "label_at_least: .* of stars .* got 1000"),
        ({"label_at_least": {"user": 4}}, "label_at_least names 'user', which isn't a label"),
    ],
)
def test_what_a_schema_cannot_say(tmp_path, fields, message):
    (tmp_path / "schema.json").write_text(json.dumps(MINIMAL | fields))
    with pytest.raises(UserError, match=f"schema: {message}"):
        Schema.from_json(tmp_path / "schema.json")


def test_a_schema_without_a_dialect_is_stored_as_before():
    fields = Options(Schema("stars", ("user",))).to_json()["schema"]
    assert not fields.keys() & {"separator", "header", "label_at_least", "shared"}
    stored = Options(dataclasses.replace(STARS, separator="::")).to_json()
    assert Options.from_json(stored).to_json() == stored
    number = Schema.from_fields(MINIMAL | {"label_at_least": 4})
    assert number.label_at_least == {"stars": 4.0}


def test_a_column_that_no_header_names_is_named(tmp_path):
    write(tmp_path / "log.txt", rows_of(9))
    schema = dataclasses.replace(STARS, separator="\t", categorical=("user", "shop"))
    with pytest.raises(
        UserError, match=r"has no column 'shop' .*its columns are user, item, stars"
    ):
        preprocess([tmp_path / "log.txt"], tmp_path / "out", Options(schema))


def test_each_of_several_labels_has_its_own_threshold(tmp_path):
    schema = Schema.from_fields(
        MINIMAL | {"label": ["stars", "seen"], "label_at_least": {"stars": 4}}
        | {"separator": ";", "header": ["user", "stars", "seen"]}
    )  # fmt: skip
    rows = [("a", "4", "1"), ("b", "3.5", ""), ("c", "", "0")] * 9
    write(tmp_path / "log.txt", rows, ";")
    preprocess([tmp_path / "log.txt"], tmp_path / "out", Options(schema, split="none"))
    labels = load_directory(tmp_path / "out").train.labels[:3]
    np.testing.assert_array_equal(labels, np.array([[1, 1], [0, np.nan], [np.nan, 0]], "f4"))
    write(tmp_path / "log.txt", [*rows, ("d", "?", "1")], ";")
    with pytest.raises(UserError, match="row 28, column stars: expected a finite number, or"):
        preprocess([tmp_path / "log.txt"], tmp_path / "more", Options(schema, split="none"))
    with pytest.raises(UserError, match="label_at_least: expected a number for the only label"):
        Schema.from_fields(MINIMAL | {"label": ["stars", "seen"], "label_at_least": 4})


def test_an_error_leaves_no_thread_behind(tmp_path):
    """Python's collector would end it in any thread, also one that holds locks of threads."""
    (tmp_path / "log.csv").write_text("user,stars\na,5,6\n")
    source = Source(tmp_path / "log.csv", Options(Schema("stars", ("user",))))
    before = threading.active_count()
    gc.disable()
    try:
        with pytest.raises(UserError, match="line 2: expected 2 fields"):
            list(source.chunks())
        assert threading.active_count() == before
    finally:
        gc.enable()
