"""Gzip files are read to their end, or are an error."""

import gzip
import io
import logging
import zlib
from pathlib import Path

import numpy as np
import pytest

from dlrm_jax.data.formats.compression import DamagedError, open_bytes
from dlrm_jax.data.formats.gzip_members import GzipMembers

TEXT = np.random.default_rng(0).integers(0, 4, 200_000, np.uint8).tobytes()
ONE, OTHER = gzip.compress(TEXT, 1), gzip.compress(b"other", 1)


def read(content, size=1 << 20):
    file = io.BufferedReader(GzipMembers(io.BytesIO(content), Path("log.gz")), size)
    return b"".join(iter(lambda: file.read(size), b""))


@pytest.mark.parametrize("size", [100, 4096, 1 << 20])
def test_all_members_are_read(size):
    assert read(ONE + OTHER + gzip.compress(b"") + ONE, size) == TEXT + b"other" + TEXT
    assert read(OTHER * 500) == b"other" * 500


@pytest.mark.parametrize("end", [1, 8, 20, len(ONE) - 12, len(ONE) // 2])
def test_a_file_that_is_cut_short(end):
    for before in (b"", OTHER):
        with pytest.raises(EOFError, match="ends within a member"):
            read(before + ONE[:-end])


def test_a_file_that_is_changed():
    for place in (3, 1000, len(ONE) - 7, len(ONE) - 2):
        changed = bytearray(ONE)
        changed[place] ^= 0x10
        with pytest.raises((zlib.error, EOFError)):
            read(bytes(changed))
    with pytest.raises(zlib.error, match="incorrect header"):
        read(ONE + b"not gzip")


def test_a_lost_member_is_no_padding(tmp_path, caplog):
    """A disk that loses a block gives zeros."""
    begin = f"from byte {len(OTHER):,} on"
    with pytest.raises(zlib.error, match=f"{len(ONE):,} zeros {begin}, where a member is expec"):
        read(OTHER + bytes(len(ONE)) + OTHER)
    with pytest.raises(zlib.error, match=f"^1 zeros {begin}"):
        read(OTHER + b"\0" + OTHER)
    path = tmp_path / "log.gz"
    path.write_bytes(OTHER + bytes(1 << 16))
    with pytest.raises(DamagedError, match=f"65,536 zeros {begin}"), open_bytes(path) as content:
        list(iter(lambda: content.read(100), b""))
    with caplog.at_level(logging.WARNING):
        assert read(OTHER + bytes(10_000)) == b"other"
    assert caplog.text.count("\n") == 1
    assert f"log.gz: 10,000 zeros from byte {len(OTHER)} to the end are taken" in caplog.text
