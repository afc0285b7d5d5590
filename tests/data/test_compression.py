"""Compressed files, in memory that doesn't grow with what is in them."""

import gzip
import time
import tracemalloc

import numpy as np
import pytest

from dlrm_jax.data.formats import csv_text, lines
from dlrm_jax.data.formats.compression import Bytes, open_bytes, sampled_hash, zstd
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.sources import CHUNK_ROWS, Source
from dlrm_jax.errors import UserError

CHUNK = 1 << 20


@pytest.fixture
def peak(monkeypatch):
    """A function that gives the most bytes that were in use since the test began."""
    monkeypatch.setattr(lines, "CHUNK_BYTES", CHUNK)
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def read_all(path):
    with open_bytes(path, lambda _: None) as content:
        while chunk := content.read(CHUNK):
            yield chunk


@pytest.mark.parametrize("number", [0x0, 0xF])
def test_a_skippable_frame_may_come_first(tmp_path, number):
    """As in the output of pzstd."""
    frame = bytes([0x50 + number]) + b"\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    (tmp_path / "log.zst").write_bytes(frame + zstd.compress(b"abc\n") * 2)
    assert b"".join(read_all(tmp_path / "log.zst")) == b"abc\nabc\n"


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_a_bomb_is_read_piece_by_piece(tmp_path, compress, peak):
    path = tmp_path / "bomb"
    path.write_bytes(compress(bytes(32 * CHUNK)) * 2)
    tracemalloc.reset_peak()
    sizes = [len(chunk) for chunk in read_all(path)]
    assert (max(sizes), sum(sizes)) == (CHUNK, 64 * CHUNK)
    assert peak() < 12 * CHUNK


def test_a_text_without_lines_is_one_error(tmp_path, peak):
    path = tmp_path / "bomb.zst"
    path.write_bytes(zstd.compress(b"7" * 32 * CHUNK))
    tracemalloc.reset_peak()
    with pytest.raises(UserError, match="has a line of more than 1,048,576 bytes"):
        list(Source(path, Options()).chunks())
    assert peak() < 12 * CHUNK


@pytest.mark.parametrize("drop", [False, True])
def test_long_values_of_csv_are_read_in_parts(tmp_path, monkeypatch, drop):
    path = tmp_path / "log.csv.zst"
    values = ["a" * 1000 if i % 3 else "b" for i in range(300)]
    rows = "".join(f"0,{value}\n" for value in values)
    path.write_bytes(zstd.compress(f"y,a\n{rows}".encode()))
    options = Options(Schema("y", ("a",)), drop_negatives=0.5, seed=3)

    def kept():
        parsed = [parse().frame for _, parse in Source(path, options, 0, drop).chunks()]
        return max(map(len, parsed)), np.concatenate([frame["c0"] for frame in parsed]).tolist()

    monkeypatch.setattr("dlrm_jax.data.preprocessing.sources.CHUNK_ROWS", 100)
    longest, whole = kept()
    monkeypatch.setattr(csv_text, "_FRAME_CHARACTERS", 5000)
    most, parts = kept()
    assert most < 11 < longest <= 100 < CHUNK_ROWS
    assert parts == whole  # the same ones are dropped
    assert drop or whole == values


def test_many_columns(tmp_path):
    """A header of as many columns as fit into a chunk is one error at once."""
    path = tmp_path / "log.csv"
    path.write_text(",".join(map(str, range(40_000))) + ",7\n")
    begun = time.process_time()
    with pytest.raises(UserError, match="got '7' twice"):
        list(Source(path, Options(Schema("y", ("a",)))).chunks())
    assert time.process_time() - begun < 2


def test_bytes_that_are_peeked_at_are_read_again():
    parts = [b"abc", b"de", b""]
    content = Bytes(lambda _: parts.pop(0))
    assert content.peek(4) == b"abcd"
    assert content.read(2) + content.read(9) == b"abcde"


def test_a_sampled_hash_is_of_size_and_content(tmp_path):
    path = tmp_path / "array"
    content = bytearray(5 << 20)
    found = set()
    for place in (0, 100_000, len(content) // 3, len(content) - 1):
        content[place] ^= 1
        path.write_bytes(content)
        found.add(sampled_hash(path))
    path.write_bytes(content[:-1])
    found.add(sampled_hash(path))
    path.write_bytes(b"")
    found.add(sampled_hash(path))
    assert len(found) == 6
