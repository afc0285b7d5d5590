"""CSV files with a header."""

import csv
import gzip
import io
import json

import numpy as np
import polars as pl
import pytest
from criteo_lines import dense_of
from hypothesis import given
from hypothesis import strategies as st
from served import encode_logs

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats import lines
from dlrm_jax.data.formats.csv_text import MISSING, Records
from dlrm_jax.data.formats.lines import OnBadLine, whole_lines
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

SCHEMA = Schema("y", ("shop",), ("price",), dense_transform="none")


def records(content, tmp_path, chunk_bytes=64, on_bad_line: OnBadLine = "stop"):
    chunks = whole_lines(io.BytesIO(content).read, tmp_path / "log.csv", chunk_bytes)
    return Records(chunks, tmp_path / "log.csv", on_bad_line)


def frame_of(content, tmp_path, columns, **options):
    found = records(content, tmp_path, **options)
    return pl.concat(found.frames(columns, 3))


def test_values_stay_as_they_are_written(tmp_path):
    rows = ["y,price,shop", *(f"{'true' if i % 2 else 'false'},{i},00{i % 3}" for i in range(40))]
    rows[3] = "0,,7"
    (tmp_path / "log.csv").write_bytes(gzip.compress(("\n".join(rows) + "\n").encode()))
    preprocess([tmp_path / "log.csv"], tmp_path / "out", Options(SCHEMA))
    table = pl.read_parquet(tmp_path / "out" / "vocabularies" / "0.parquet")
    assert set(table["value"]) == {"000", "001", "002", "7"}
    dataset = load_directory(tmp_path / "out")
    assert dense_of(dataset, "train")[:4, 0].tolist() == [0, 1, 0, 3]
    assert dataset.train.labels[:4].tolist() == [0, 1, 0, 1]


@given(st.lists(st.lists(st.text(max_size=5), min_size=2, max_size=2), min_size=1, max_size=9))
def test_what_is_written_is_read(tmp_path_factory, rows):
    written = io.StringIO(newline="")
    csv.writer(written).writerows([["a", "b"], *rows])
    content = written.getvalue().encode(errors="surrogatepass")
    found = frame_of(content, tmp_path_factory.getbasetemp(), ["b", "a"], chunk_bytes=7)
    assert found.columns == ["b", "a"]
    assert found.rows() == [tuple(None if x in MISSING else x for x in (b, a)) for a, b in rows]


def test_missing_values(tmp_path):
    texts = ("nan", "NA", "null", "NaN", "", "7", "N/A")
    rows = "".join(f"{i % 2},{x},{x if x != 'N/A' else 3}\n" for x in texts for i in range(20))
    (tmp_path / "log.csv").write_text(f"y,shop,price\n{rows}")
    metadata = preprocess([tmp_path / "log.csv"], tmp_path / "out", Options(SCHEMA))
    assert metadata.missing == {"shop": 100, "price": 100}
    # The arrays were others before these were missing, and so is their hash.
    assert metadata.made_from["options"]["csv_missing"] == list(MISSING)


@pytest.mark.parametrize(("earlier", "of_na"), [(False, 1), (True, 0)])
def test_what_was_missing_in_training_is_missing_in_prediction(tmp_path, earlier, of_na):
    """In data of earlier versions, NA was a value, and a rare one is unseen."""
    rows = "".join(f"{i % 2},{'NA' if i == 3 else 'a'},{i}\n" for i in range(70))
    (tmp_path / "log.csv").write_text(f"y,shop,price\n{rows}")
    options = Options(SCHEMA, min_count=2)
    preprocess([tmp_path / "log.csv"], tmp_path / "out", options)
    if earlier:
        path = tmp_path / "out" / "metadata.json"
        metadata = json.loads(path.read_text())
        del metadata["made_from"]["options"]["csv_missing"]
        path.write_text(json.dumps(metadata))
    (tmp_path / "new.csv").write_text("shop,price\nNA,1\n,1\na,1\n")
    (found,) = encode_logs([tmp_path / "new.csv"], tmp_path / "out")
    assert np.asarray(found.ids)[:, 0].tolist() == [of_na, 1, 2]
    grown = preprocess([tmp_path / "log.csv"], tmp_path / "more", options, grow=tmp_path / "out")
    assert grown.missing["shop"] == of_na
    assert ("csv_missing" in grown.made_from["options"]) != earlier
    if earlier:
        told = r"this command: an earlier version made it, .* not NA, NaN, nan and null; train with"
        with pytest.raises(UserError, match=told):
            preprocess([tmp_path / "log.csv"], tmp_path / "out", options)
        with (tmp_path / "log.csv").open("a") as file:
            file.write("1,a,1\n")
        with pytest.raises(UserError, match=r"inputs were .*; delete it, or"):
            preprocess([tmp_path / "log.csv"], tmp_path / "out", options)


@pytest.mark.parametrize("text", MISSING)
def test_a_label_that_is_missing_is_named(tmp_path, text):
    (tmp_path / "log.csv").write_text(f"y,shop,price\n1,a,1\n{text},a,1\n")
    expected = "row 2, column y: expected 0 or 1, got no value .an empty field, NA, NaN, nan or"
    with pytest.raises(UserError, match=expected):
        preprocess([tmp_path / "log.csv"], tmp_path / "out", Options(SCHEMA))


def test_values_that_grow_stay_values(tmp_path):
    rows = [(i % 2, "NA" if i % 3 else "a") for i in range(60)]
    pl.DataFrame(rows, ["y", "shop"], orient="row").write_parquet(tmp_path / "log.parquet")
    (tmp_path / "new.csv").write_text("y,shop\n" + "".join(f"{y},{x}\n" for y, x in rows))
    options = Options(Schema("y", ("shop",)))
    preprocess([tmp_path / "log.parquet"], tmp_path / "out", options)
    grown = preprocess([tmp_path / "new.csv"], tmp_path / "new", options, grow=tmp_path / "out")
    assert grown.missing == {"shop": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"y,shop\n1,a\n0\n", "line 3: expected 2 fields as in the header, found 1"),
        (b"y,shop\n1,a\n0,b,c\n", "line 3: expected 2 fields as in the header, found 3"),
        (b"y,shop\n1,a\n\n", "line 3: expected 2 fields as in the header, found a blank line"),
        (b"y,shop\r\n1,a\r\n0\r\n", "line 3: expected 2 fields"),
        (b'y,shop\n1,"a\n0,b\n', "line 2: a quote begins in this record, and the file ends"),
        (b'y,shop\n1,"a\nb"\n1,"a\nb",2\n', "line 4: expected 2 fields as in the header, found 3"),
        (b'y,shop\n1,"a"b\n', "line 2: ',' expected after '\"'"),
        (b"y,shop\n1,a\n0,\xff\n", "line 3: expected UTF-8, found the byte ff"),
        ("y,shop\n1,ä\n".encode("utf-16"), "line 1: expected UTF-8, found the byte ff"),
        (b"y,y\n1,2\n", "got 'y' twice"),
        (b"", "got nothing"),
    ],
)
def test_malformed_files_name_the_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        frame_of(content, tmp_path, ["y"])


def test_malformed_lines_are_counted_when_skipped(tmp_path):
    content = b"y,shop\n" + b"1,a\n" * 3 + b"0\n" + b"0,b\n" * 3 + b"1,2,3\n\n"
    found = records(content, tmp_path, on_bad_line="skip")
    frame = pl.concat(found.frames(["y", "shop"], 3))
    assert frame.rows() == [("1", "a")] * 3 + [("0", "b")] * 3
    assert found.skipped == 3


def test_all_that_is_left_out_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 30)
    rows = ["y,price,shop", *(f"{i % 2},{i},{i % 3}" for i in range(40)), "1", "x,1,1", "1,x,1"]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    options = Options(SCHEMA, on_bad_line="skip")
    metadata = preprocess([tmp_path / "log.csv"], tmp_path / "out", options)
    assert (metadata.skipped_lines, sum(metadata.days)) == (3, 40)


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    content = b"\xef\xbb\xbfy,shop\r\n1,a\r\n0,b\r\n"
    assert frame_of(content, tmp_path, ["y", "shop"]).rows() == [("1", "a"), ("0", "b")]
