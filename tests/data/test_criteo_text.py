import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.formats.criteo_text import COLUMNS, parse_chunk
from dlrm_jax.data.formats.lines import whole_lines
from dlrm_jax.errors import UserError

GOOD = [b"1", *[b"3"] * 13, *[b"68fd1e64"] * 26]


def line(**fields):
    """A good line with some fields replaced."""
    values = dict(zip(COLUMNS, GOOD, strict=True)) | fields
    return b"\t".join(values.values()) + b"\n"


def parse(chunk):
    return parse_chunk(chunk, Path("train.txt"), 1)


def chunks_of(text, chunk_bytes):
    """A text parsed chunk by chunk."""
    first_line = 1
    for chunk in whole_lines(io.BytesIO(text).read, Path("train.txt"), chunk_bytes):
        yield parse_chunk(chunk, Path("train.txt"), first_line)
        first_line += chunk.count(b"\n")


integers = st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 100)
values = st.none() | st.integers(0, 2**32 - 1)
rows = st.tuples(
    st.integers(0, 1),
    st.lists(integers, min_size=13, max_size=13),
    st.lists(values, min_size=26, max_size=26),
)


def formatted(row, digits="08x"):
    label, numbers, categoricals = row
    fields = [
        str(label),
        *("" if n is None else str(n) for n in numbers),
        *("" if c is None else format(c, digits) for c in categoricals),
    ]
    return "\t".join(fields).encode()


@given(st.lists(rows, min_size=1, max_size=5), st.sampled_from(["08x", "x", "X"]))
def test_what_is_written_is_read(lines, digits):
    frame = parse(b"".join(formatted(row, digits) + b"\n" for row in lines))
    assert tuple(frame.columns) == COLUMNS
    assert frame.rows() == [(label, *numbers, *values) for label, numbers, values in lines]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 300, 1000, 1 << 20])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_chunks_cover_the_text_whatever_their_size(chunk_bytes, end):
    content = b"".join(line(I1=b"%d" % i, C26=b"%x" % i) for i in range(20))[:-1] + end
    chunks = list(chunks_of(content, chunk_bytes))
    assert [value for chunk in chunks for value in chunk["C26"]] == list(range(20))
    if chunk_bytes < 1000:
        assert len(chunks) > 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(label=b"2"), r"column 1 \(label\): expected 0 or 1, found '2'"),
        (line(label=b""), r"column 1 \(label\): expected 0 or 1, found ''"),
        (line(label=b"-1"), r"column 1 \(label\)"),
        (line(I1=b"1.5"), r"column 2 \(I1\): expected a 64-bit integer or nothing, found '1.5'"),
        (line(I2=b"a"), r"column 3 \(I2\)"),
        (line(I2=b"-"), r"column 3 \(I2\)"),
        (line(I13=b"9223372036854775808"), r"column 14 \(I13\): .* '9223372036854775808'"),
        (line(I3=b"+5"), r"column 4 \(I3\)"),
        (line(I3=b" 5"), r"column 4 \(I3\)"),
        (line(C1=b"68fd1e6g"), r"column 15 \(C1\): expected up to 8 hexadecimal digits"),
        (line(C26=b"068fd1e64"), r"column 40 \(C26\): .* found '068fd1e64'"),
        (line(C2=b"-1"), r"column 16 \(C2\)"),
        (line(C2=b'"'), r"column 16 \(C2\)"),
        (line(C3=b"a" * 5000), r"column 17 \(C3\): .*\(5000 bytes\)"),
        (line(C4=b"\0"), r"column 18 \(C4\): .*found '\\x00'"),
        (line(C4=b"\xff\xfe"), r"column 18 \(C4\): .*found '\\xff\\xfe'"),
        (line()[:-1] + b"\r\n", "CR LF"),
        (b"\n", "40 tab-separated fields .*found a blank line"),
        (line()[:-10] + b"\n", r"column 40"),
        (b"\t".join(GOOD[:39]) + b"\n", "40 tab-separated fields .*found 39"),
        (b"\t".join([*GOOD, b"1"]) + b"\n", "40 tab-separated fields .*found 41"),
        # As many separators as two good lines have.
        (b"\t".join(GOOD[:39]) + b"\n" + b"\t".join([*GOOD, b"1"]) + b"\n", "found 39"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
def test_bad_lines_are_named(bad, message, chunk_bytes):
    if bad.startswith(line()[:-10] + b"\n"):  # the last field is cut, then one field is missing
        message = "found 39"
    with pytest.raises(UserError, match=rf"train\.txt, line 7[,:].*{message}"):
        list(chunks_of(line() * 6 + bad + line() * 2, chunk_bytes))


def test_bad_lines_are_left_out_on_request():
    bad = line(label=b"2") + b"\n" + line()[:-10] + b"\n" + line(C1=b"xyz")
    chunk = line(I1=b"1") + bad + line(I1=b"2")
    assert parse_chunk(chunk, Path("train.txt"), 1, "skip")["I1"].to_list() == [1, 2]
    assert len(parse_chunk(bad, Path("train.txt"), 1, "skip")) == 0


@given(st.data())
def test_any_damage_is_either_read_as_written_or_named(data):
    """Polars and the line by line reading agree on what is right."""
    good = bytearray(line(I1=b"", C3=b"") * 3)
    place = data.draw(st.integers(0, len(good) - 2))
    piece = data.draw(st.binary(max_size=3) | st.sampled_from([b"\t", b"\n", b"-", b"0", b"e"]))
    good[place : place + data.draw(st.integers(0, 3))] = piece
    if not good.endswith(b"\n"):
        good += b"\n"
    try:
        chunk = parse(bytes(good))
    except UserError:  # and not the AssertionError that means they disagree
        return
    assert len(chunk) == good.count(b"\n")


def test_text_without_lines():
    with pytest.raises(UserError, match="more than 65,536 bytes"):
        list(chunks_of(b"\x1f" * 200_000, 1 << 12))


@pytest.mark.parametrize("line", [b"clicked,price,shop", b"1\t2"])
def test_a_log_of_the_users_own_needs_a_schema(line):
    with pytest.raises(UserError, match=r"log.csv, line 1: .* needs a schema: .* --schema"):
        parse_chunk(line + b"\n", Path("log.csv"), 1)
