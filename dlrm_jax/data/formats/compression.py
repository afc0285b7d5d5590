"""The bytes of a file that may be compressed, hashed while they are read."""

from __future__ import annotations

import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from dlrm_jax.data.formats.gzip_members import GzipMembers

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# A hash against mistakes, not against attackers: many times as fast as those that would
# withstand one.
Hash = xxhash.xxh3_128

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # their first bytes
# A skippable frame, which pzstd writes first, begins with one of 16 numbers.
_ZSTANDARDS = (_ZSTANDARD, *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60)))
_CHUNK = 1 << 20
_SAMPLES, _SAMPLE = 16, 1 << 18


def file_hash(path: Path) -> str:
    """The hash of all bytes of a file."""
    with path.open("rb") as file:
        return whole_hash(file)


def whole_hash(file: io.BufferedReader) -> str:
    """The hash of all bytes of a file that was just opened."""
    return hashlib.file_digest(file, Hash).hexdigest()


def sampled_hash(path: Path) -> str:
    """The hash of a file's size and of enough of its bytes to tell arrays apart: 4 MiB at most."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        digest = Hash(str(size).encode())
        last = max(0, size - _SAMPLE)
        for number in range(_SAMPLES):
            file.seek(last * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


class DamagedError(Exception):
    """A compressed file is cut short or corrupt."""


class Bytes:
    """The uncompressed bytes of a file, given a function that reads at most so many of them."""

    def __init__(self, read: Callable[[int], bytes]):
        self._read = read
        self._peeked = b""

    def read(self, size: int) -> bytes:
        """Reads at most ``size`` bytes; none at the end.

        Raises:
            DamagedError: the compressed file is cut short or corrupt.
        """
        if self._peeked:
            content, self._peeked = self._peeked[:size], self._peeked[size:]
            return content
        try:
            return self._read(size)
        except (EOFError, zlib.error, zstd.ZstdError) as error:
            raise DamagedError(str(error)) from error

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end; they will be read again."""
        peeked, self._peeked = self._peeked, b""  # `read` would return them
        while len(peeked) < size and (more := self.read(max(size, _CHUNK))):
            peeked += more
        self._peeked = peeked
        return peeked[:size]


@contextmanager
def open_bytes(path: Path, update: Callable[[bytes], object] | None = None) -> Iterator[Bytes]:
    """Opens a file: plain, gzip or zstandard, detected from the first bytes.

    ``update``, if any, receives the bytes of the file as stored: all of them when the context ends
    without an error.
    """
    with path.open("rb") as raw:
        file = _Hashing(raw, update) if update else raw
        magic = raw.read(len(_ZSTANDARD))
        raw.seek(0)
        if magic.startswith(_GZIP):
            yield Bytes(io.BufferedReader(GzipMembers(file, path), _CHUNK).read)
        elif magic in _ZSTANDARDS:
            yield Bytes(zstd.ZstdFile(file).read)  # pyright: ignore[reportArgumentType]
        else:
            yield Bytes(file.read)
        while update and file.read(_CHUNK):  # the bytes that a decompressor left unread
            pass


class _Hashing(io.RawIOBase):
    """A file whose bytes are hashed while they are read."""

    def __init__(self, file: BinaryIO, update: Callable[[bytes], object]):
        self._file = file
        self._update = update

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._update(data)
        return data
