"""Reads input files of any format in parts: frames with the columns that `columns` names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from dlrm_jax.data.formats import criteo_binary, criteo_text, lines
from dlrm_jax.data.formats.compression import (
    Bytes,
    DamagedError,
    Hash,
    file_hash,
    open_bytes,
)
from dlrm_jax.data.formats.csv_text import Records
from dlrm_jax.data.formats.lines import OnBadLine
from dlrm_jax.data.preprocessing import logs
from dlrm_jax.data.preprocessing.columns import normalize_columns
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.errors import UserError

PART_ROWS = 1 << 18
"""Rows of a part of Parquet and CSV files; parts of Criteo files have as many bytes."""

_PARQUET = b"PAR1"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive rows of a file.

    Attributes:
        frame: the rows; see `columns`.
        skipped: number of malformed rows that were left out.
        dropped: number of negative examples that were left out.
    """

    frame: pl.DataFrame
    skipped: int
    dropped: int


class Source:
    """One file, read once from beginning to end.

    Args:
        path: the file. With Criteo's columns: its text or MLPerf's binary form, plain or
            compressed by gzip or zstandard. With another schema: a Parquet file, or a CSV file
            with a header, which may be compressed, too.
        options: options of the data.
        number: index of the file among all; it selects the negative examples that are dropped.
        drop: whether negative examples of this file are dropped.
        labelled: whether labels must exist; otherwise they may be missing and are meaningless.

    Raises:
        UserError: the file can't be read.
    """

    def __init__(
        self,
        path: Path,
        options: Options,
        number: int = 0,
        drop: bool = False,
        labelled: bool = True,
    ):
        self.path = path
        self._options = options
        self._named = options.schema.layout == "named"
        self._number = number
        self._drop = drop
        self._labelled = labelled
        self._hash = ""
        self._rows = 0

    def parts(self) -> Iterator[Callable[[], Part]]:
        """Yields a function for each part, in order, that parses it; known parts needn't be parsed.

        Raises:
            UserError: the file, a column or a line is malformed; the message names the place.
        """
        try:
            with self.path.open("rb") as file:
                parquet = file.read(4) == _PARQUET and self._named
            if parquet:
                yield from self._parquet()
            else:
                digest = Hash()
                with open_bytes(self.path, digest.update) as content:
                    yield from self._text(content)
                self._hash = digest.hexdigest()
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from error
        except DamagedError as error:
            raise UserError(
                f"{self.path}: the compressed file is cut short or damaged after line "
                f"{self._rows} ({error}); was the download complete?"
            ) from error
        if not self._rows:
            raise UserError(f"{self.path} is empty; expected rows. Was the download complete?")

    def content_hash(self) -> str:
        """The hash of all bytes of the file; complete when `parts` has ended."""
        return self._hash

    def _text(self, content: Bytes) -> Iterator[Callable[[], Part]]:
        if self._named:
            yield from self._csv(content)
        elif content.peek(4) == _PARQUET:
            raise UserError(
                f"{self.path} is a Parquet file; expected Criteo's text or binary form, or a "
                f"schema of its columns (--schema of python -m dlrm_jax preprocess)"
            )
        elif criteo_binary.is_binary(content.peek(4)):
            yield from self._binary(content)
        else:
            labelled = self._labelled or not criteo_text.is_unlabelled(content.peek(1 << 16))
            blocks = lines.whole_lines(content.read, self.path, lines.BLOCK_BYTES)
            for block in _ahead(blocks):
                count = block.count(b"\n")
                first = self._count(count)
                if not labelled:
                    block = criteo_text.with_labels(block)
                yield lambda block=block, first=first, count=count: self._parsed(
                    criteo_text.parse_block, block, first, count
                )

    def _binary(self, content: Bytes) -> Iterator[Callable[[], Part]]:
        for block in _ahead(_blocks(content, criteo_binary.BLOCK_BYTES)):
            count = -(-len(block) // criteo_binary.SAMPLE_BYTES)
            first = self._count(count)
            yield lambda block=block, first=first, count=count: self._parsed(
                criteo_binary.parse_block, block, first, count
            )

    def _parsed(
        self,
        parse_block: Callable[[bytes, Path, int, OnBadLine], pl.DataFrame],
        block: bytes,
        first: int,
        count: int,
    ) -> Part:
        frame = parse_block(block, self.path, first, self._options.on_bad_line)
        return self._part(frame, first, count - len(frame))

    def _csv(self, content: Bytes) -> Iterator[Callable[[], Part]]:
        blocks = lines.whole_lines(content.read, self.path, lines.BLOCK_BYTES)
        records = Records(_ahead(blocks), self.path, self._options.on_bad_line)
        self._check_columns(dict.fromkeys(records.columns, pl.String()))
        skipped = 0
        for frame in records.frames(self._columns(records.columns), PART_ROWS):
            # As text: a type guessed from the first rows would turn 007 into 7.
            first, more = self._count(len(frame)), records.skipped - skipped
            skipped = records.skipped
            yield lambda frame=frame, first=first, more=more: self._rows_of(frame, first, more)

    def _parquet(self) -> Iterator[Callable[[], Part]]:
        self._hash = file_hash(self.path)
        try:
            frame = pl.scan_parquet(self.path, glob=False)
            found = frame.collect_schema()
            self._check_columns(found)
            batches = frame.select(self._columns(list(found))).collect_batches(
                chunk_size=PART_ROWS, maintain_order=True
            )
            for batch in batches:
                first = self._count(len(batch))
                yield lambda batch=batch, first=first: self._rows_of(batch, first, 0)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"cannot read {self.path}: {error}") from error

    def _check_columns(self, found: Mapping[str, Any]) -> None:
        logs.check_columns(self.path, self._options.schema, found, not self._labelled)

    def _columns(self, found: list[str]) -> list[str]:
        return [name for name in self._options.schema.columns if name in found]

    def _rows_of(self, frame: pl.DataFrame, first: int, skipped: int) -> Part:
        schema = self._options.schema
        if not self._labelled:
            frame = frame.with_columns(pl.lit(0).alias(schema.label))
        checked = logs.valid_rows(self.path, schema, frame, first, self._options.on_bad_line)
        return self._part(checked, first, skipped + len(frame) - len(checked))

    def _part(self, frame: pl.DataFrame, first: int, skipped: int) -> Part:
        parsed = normalize_columns(frame, self._options)
        if not self._drop:
            return Part(parsed, skipped, 0)
        # A function of the place in the data alone, so that a resumed run draws the same.
        rng = np.random.default_rng([self._options.seed, self._number, first])
        kept = rng.random(len(parsed)) >= self._options.drop_negatives
        kept |= parsed["label"].to_numpy() > 0
        return Part(parsed.filter(pl.Series(kept)), skipped, int(np.sum(~kept)))

    def _count(self, rows: int) -> int:
        """Counts rows that were read; returns the number of the first one, from 1."""
        self._rows += rows
        return self._rows - rows + 1


def _blocks(content: Bytes, size: int) -> Iterator[bytes]:
    """Yields blocks of ``size`` bytes; the last one may be shorter."""
    block = b""
    while more := content.read(size - len(block)):
        block += more
        if len(block) == size:
            yield block
            block = b""
    if block:
        yield block


def _ahead(blocks: Iterator[T]) -> Iterator[T]:
    """Yields the same blocks; the next is read and hashed while the last is parsed."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block
