"""Input files, whatever their format, as parts: frames with the columns of a schema.

Columns are named by position: ``label``, ``d0``, ``d1``, … (float32, transformed), ``c0``, ``c1``,
… (raw values, null where missing) and, if the schema has one, ``weight``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import zstandard

from dlrm_jax.data import criteo_text
from dlrm_jax.data.criteo_text import OnBadLine
from dlrm_jax.data.preprocessing import logs
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.errors import UserError

PART_ROWS = 1 << 18
"""Rows of a part of Parquet and CSV files; parts of Criteo files have as many bytes."""

# What files begin with.
_GZIP, _ZSTANDARD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"


class Source:
    """One file, read once from beginning to end.

    Args:
        path: with the schema `CRITEO`, Criteo text (plain, gzip or zstandard); with any other, a
            Parquet file or a CSV file with a header.
        schema: what its columns mean.
        on_bad_line: what to do with a malformed line of Criteo text.
        reference: for Criteo text, whether values are what the DLRM paper's implementation
            makes of them: a missing value is 0, values are taken modulo ``max_ind_range`` (0: as
            they are), dense features are log(max(x, 0) + 1) in float32.
        max_ind_range: see there.

    Attributes:
        rows: lines read so far, skipped ones included.

    Raises:
        UserError: the file can't be read.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        on_bad_line: OnBadLine = "stop",
        reference: bool = False,
        max_ind_range: int = 0,
    ):
        self.path = path
        self.reference = reference
        self.max_ind_range = max_ind_range
        self.schema = schema
        self.on_bad_line: OnBadLine = on_bad_line
        self.rows = 0
        self._hash = hashlib.blake2b()

    def parts(self) -> Iterator[Callable[[], pl.DataFrame]]:
        """For each part in order, what parses it: a part that is known already needn't be parsed.

        Raises:
            UserError: the file, a column or a line isn't as described, naming the place.
        """
        try:
            if self.schema is CRITEO:
                yield from self._criteo_parts()
            else:
                yield from self._log_parts()
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from error
        if not self.rows:
            raise UserError(f"{self.path} is empty; expected rows. Was the download complete?")

    def content_hash(self) -> str:
        """Of all bytes of the file; complete when `parts` has ended."""
        return self._hash.hexdigest()

    def _criteo_parts(self) -> Iterator[Callable[[], pl.DataFrame]]:
        with self.path.open("rb") as raw:
            hashing = _Hashing(raw, self._hash.update)
            read = self._decompressed(hashing)
            for block in _ahead(criteo_text.whole_lines(read, self.path, criteo_text.BLOCK_BYTES)):
                first_line = self.rows + 1
                self.rows += block.count(b"\n")
                yield lambda block=block, first_line=first_line: self._parse(block, first_line)
            while hashing.read(1 << 20):  # what a decompressor left unread
                pass

    def _parse(self, block: bytes, first_line: int) -> pl.DataFrame:
        frame = criteo_text.parse_block(block, self.path, first_line, self.on_bad_line)
        if self.reference:
            return _as_reference(frame, self.max_ind_range)
        return _canonical(frame, self.schema)

    def _decompressed(self, file: _Hashing) -> Callable[[int], bytes]:
        """How to read the text of a file that may be compressed."""
        magic = file.peek(4)
        if magic.startswith(_GZIP):
            reader = gzip.GzipFile(fileobj=file, mode="rb")  # pyright: ignore[reportArgumentType]
        elif magic == _ZSTANDARD:
            reader = _ZstandardReader(file)
        else:
            return file.read

        def read(size: int) -> bytes:
            try:
                return reader.read(size)
            except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
                raise UserError(
                    f"{self.path}: the compressed file is cut short or damaged after line "
                    f"{self.rows} ({error}); was the download complete?"
                ) from error

        return read

    def _log_parts(self) -> Iterator[Callable[[], pl.DataFrame]]:
        with self.path.open("rb") as file:
            parquet = file.read(4) == _PARQUET
            file.seek(0)
            self._hash = hashlib.file_digest(file, "blake2b")
        try:
            if parquet:
                frame = pl.scan_parquet(self.path, glob=False)
            else:  # as text: a type guessed from the first rows would make 007 of 7
                frame = pl.scan_csv(self.path, glob=False, infer_schema=False)
            logs.check_columns(self.path, self.schema, frame.collect_schema())
            batches = frame.select(self.schema.columns).collect_batches(
                chunk_size=PART_ROWS, maintain_order=True
            )
            for batch in batches:
                first_row = self.rows + 1
                self.rows += len(batch)
                yield lambda batch=batch, first_row=first_row: _canonical(
                    logs.checked(self.path, self.schema, batch, first_row), self.schema
                )
        except pl.exceptions.PolarsError as error:
            raise UserError(f"cannot read {self.path}: {error}") from error


class _ZstandardReader:
    """Zstandard frames one after the other; their end is checked, as a stream's isn't."""

    def __init__(self, file: _Hashing):
        self._file = file
        self._frame: Any = None
        self._rest = b""

    def read(self, size: int) -> bytes:
        """At least as many bytes, or all that are left."""
        pieces, length = [], 0
        while length < size:
            data = self._rest or self._file.read(1 << 20)
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame doesn't end")
                break
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            pieces.append(self._frame.decompress(data))
            length += len(pieces[-1])
            self._rest = b""
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = None
        return b"".join(pieces)


class _Hashing(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: BinaryIO, update: Callable[[bytes], object]):
        self._file = file
        self._update = update

    def peek(self, size: int) -> bytes:
        """The next bytes, which will be read again."""
        found = self._file.read(size)
        self._file.seek(-len(found), io.SEEK_CUR)
        return found

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._update(data)
        return data


def _ahead(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same blocks; the next one is read and hashed while the last one is parsed."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block


def _canonical(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """A frame's columns under the names that `sources` gives them, transformed."""

    def dense(name: str) -> pl.Expr:
        x = pl.col(name).fill_null(0).cast(pl.Float64)
        return x.clip(lower_bound=0).log1p() if schema.dense_transform == "log" else x

    def categorical(name: str) -> pl.Expr:
        if name not in schema.bag_lengths:
            return pl.col(name)
        bag = pl.col(name)
        if isinstance(frame[name].dtype, pl.Array):
            bag = bag.arr.to_list()
        return bag.list.head(schema.bag_lengths[name])

    columns = [pl.col(schema.label).cast(pl.Float32).alias("label")]
    columns += [dense(x).cast(pl.Float32).alias(f"d{i}") for i, x in enumerate(schema.dense)]
    columns += [categorical(x).alias(f"c{i}") for i, x in enumerate(schema.categorical)]
    if schema.weight:
        columns.append(pl.col(schema.weight).cast(pl.Float32).alias("weight"))
    return frame.select(columns)


def _as_reference(frame: pl.DataFrame, max_ind_range: int) -> pl.DataFrame:
    def dense(name: str) -> pl.Series:
        x = frame[name].fill_null(0).clip(lower_bound=0).cast(pl.Float32).to_numpy()
        return pl.Series(np.log(x + np.float32(1)))

    def value(name: str) -> pl.Series:
        x = frame[name].fill_null(0)
        return x % max_ind_range if max_ind_range else x

    return pl.DataFrame(
        {
            "label": frame["label"].cast(pl.Float32),
            **{f"d{i}": dense(name) for i, name in enumerate(CRITEO.dense)},
            **{f"c{i}": value(name) for i, name in enumerate(CRITEO.categorical)},
        }
    )
