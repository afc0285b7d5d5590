"""Reads input files of any format in chunks: frames with the columns that `columns` names."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl

from dlrm_jax.data.formats import criteo_binary, criteo_text, lines, parquet
from dlrm_jax.data.formats.compression import Bytes, DamagedError, Hash, open_bytes, whole_hash
from dlrm_jax.data.formats.csv_text import Records, without_missing
from dlrm_jax.data.formats.lines import OnBadLine
from dlrm_jax.data.preprocessing import logs
from dlrm_jax.data.preprocessing.columns import normalize_columns
from dlrm_jax.data.preprocessing.log_times import has_seconds
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.row_split import Place, RowSplit
from dlrm_jax.errors import UserError

CHUNK_ROWS = 1 << 18
"""Rows of a chunk of Parquet and CSV files; chunks of Criteo files have as many bytes."""

_PARQUET = b"PAR1"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file.

    Attributes:
        frame: the rows; see `columns`.
        skipped: number of malformed rows that were left out.
        dropped: number of negative examples that were left out.
        keys: the columns that are passed through, as they are in the file.
    """

    frame: pl.DataFrame
    skipped: int
    dropped: int
    keys: pl.DataFrame


class _Unparsed(NamedTuple):
    """The content of a chunk, and the function that parses it.

    ``skipped`` malformed rows, not counted in ``rows``, were left out before. The ``place`` is not
    0 if it is one of several parts of a chunk: then these rows of the chunk are before it.
    ``keys`` has the columns that are passed through.
    """

    parse: Callable[[Any, Path, int, OnBadLine], pl.DataFrame]
    content: bytes | pl.DataFrame
    rows: int
    skipped: int = 0
    place: int = 0
    keys: pl.DataFrame = pl.DataFrame()


@dataclasses.dataclass
class Source:
    """One file, read once from beginning to end.

    Attributes:
        path: the file. With Criteo's columns: its text or MLPerf's binary form, plain or
            compressed by gzip or zstandard. With another schema: a Parquet file, or a CSV file
            in the schema's dialect, which may be compressed, too.
        options: options of the data.
        number: index of the file among all; it selects the negative examples that are dropped.
        drop: whether negative examples of this file are dropped.
        labelled: whether every row must have a label; otherwise one that is neither 0 nor 1 is
            null, and the column may be missing.
        row_split: rule that gives each row its split, a column ``split``; None for none.
        before: number of rows of all earlier files.
        keys: columns to pass through; where there are any, no row may be left out.
        content_hash: hash of all bytes of the file; complete when `chunks` has ended.
    """

    path: Path
    options: Options
    number: int = 0
    drop: bool = False
    labelled: bool = True
    row_split: RowSplit | None = None
    before: int = 0
    keys: tuple[str, ...] = ()
    content_hash: str = dataclasses.field(default="", init=False)
    _rows: int = dataclasses.field(default=0, init=False)
    _seconds: bool | None = dataclasses.field(default=None, init=False)

    def chunks(self) -> Generator[tuple[int, Callable[[], Chunk]], None, None]:
        """Yields the chunks in order, with the number of their rows; known ones needn't be parsed.

        A chunk is the function that parses it. The number counts malformed rows, too.

        Raises:
            UserError: the file can't be read, or a column or a line is malformed; the message names
                the place.
        """
        try:
            for unparsed in self._read():
                first = self._rows + 1
                self._rows += unparsed.rows
                rows = unparsed.rows + unparsed.skipped
                yield rows, functools.partial(self._parsed, unparsed, first)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from error
        except DamagedError as error:
            raise UserError(
                f"{self.path}: the compressed file is cut short or damaged after line "
                f"{self._rows} ({error}); was the download complete?"
            ) from error
        if not self._rows:
            raise UserError(f"{self.path} is empty; expected rows. Was the download complete?")

    def _read(self) -> Iterator[_Unparsed]:
        named = self.options.schema.layout == "named"
        if named and is_parquet(self.path):
            yield from self._parquet()
            return
        digest = Hash()
        with open_bytes(self.path, digest.update) as content:
            if named:
                yield from self._csv(content)
            elif content.peek(4) == _PARQUET:
                raise UserError(
                    f"{self.path} is a Parquet file; expected Criteo's text or binary form, or a "
                    f"schema of its columns (--schema of python -m dlrm_jax preprocess)"
                )
            elif criteo_binary.is_binary(content.peek(4)):
                for chunk in ahead(_chunks(content, criteo_binary.CHUNK_BYTES)):
                    samples = -(-len(chunk) // criteo_binary.SAMPLE_BYTES)
                    yield _Unparsed(criteo_binary.parse_chunk, chunk, samples)
            else:
                yield from self._text(content)
        self.content_hash = digest.hexdigest()

    def _text(self, content: Bytes) -> Iterator[_Unparsed]:
        labelled = self.labelled or not criteo_text.is_unlabelled(content.peek(1 << 16))
        parse = criteo_text.parse_chunk if labelled else _parse_unlabelled
        for chunk in self._lines(content):
            yield _Unparsed(parse, chunk, chunk.count(b"\n"))

    def _csv(self, content: Bytes) -> Iterator[_Unparsed]:
        # Closed here, whatever happens: its thread would otherwise end where garbage is collected.
        with contextlib.closing(self._lines(content)) as text:
            yield from self._records(text)

    def _records(self, text: Iterator[bytes]) -> Iterator[_Unparsed]:
        options = self.options
        dialect = options.schema.dialect
        records = Records(text, self.path, options.on_bad_line, dialect)
        columns = self._columns(dict.fromkeys(records.columns, pl.String()))
        skipped = place = 0
        # As text: a type guessed from the first rows would turn 007 into 7.
        names = list(dict.fromkeys([*columns, *self.keys]))
        for rows in records.frames(names, CHUNK_ROWS, missing=()):
            frame = without_missing(rows.select(columns), options.csv_missing)
            keys = without_missing(rows.select(self.keys), [""])
            yield self._unparsed(frame, keys, records.skipped - skipped, place)
            skipped, place = records.skipped, (place + len(frame)) % CHUNK_ROWS

    def _parquet(self) -> Iterator[_Unparsed]:
        # One open file: another may take its name between the hash and the rows.
        with self.path.open("rb") as file, parquet.reading(str(self.path)):
            self._columns(pl.read_parquet_schema(file))  # before the hash, which reads all of it
            file.seek(0)
            self.content_hash = whole_hash(file)
            file.seek(0)
            frame = pl.scan_parquet(file, glob=False)
            columns = self._columns(frame.collect_schema())
            read = frame.select(list(dict.fromkeys([*columns, *self.keys])))
            for batch in read.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True):
                yield self._unparsed(batch.select(columns), batch.select(self.keys))

    def _unparsed(
        self, frame: pl.DataFrame, keys: pl.DataFrame, skipped: int = 0, place: int = 0
    ) -> _Unparsed:
        # Here, as chunks that are known aren't parsed, and one kind holds for the whole file.
        times = self.options.schema.timestamp
        if times and self._seconds is None:
            self._seconds = has_seconds(self.path, frame[times], self._rows + 1)
        return _Unparsed(self._valid_rows, frame, len(frame), skipped, place, keys)

    def _lines(self, content: Bytes) -> Generator[bytes, None, None]:
        return ahead(lines.whole_lines(content.read, self.path, lines.CHUNK_BYTES))

    def _columns(self, found: Mapping[str, Any]) -> list[str]:
        """The columns to read, of those in the file."""
        schema = self.options.schema
        logs.check_columns(self.path, schema, found, not self.labelled)
        wanted = dict.fromkeys((*schema.columns, *schema.groups))
        names = [name for name in wanted if name in found]
        if self.row_split:
            self.row_split.check_columns(self.path, found)
            if (column := self.row_split.column) and column not in names:
                names.append(column)
        return names

    def _valid_rows(
        self, frame: pl.DataFrame, path: Path, first: int, on_bad_line: OnBadLine
    ) -> pl.DataFrame:
        schema = self.options.schema
        if self.row_split:
            frame = self.row_split.valid_rows(path, frame, first, on_bad_line)
        if self.labelled:
            return logs.valid_rows(path, schema, frame, first, on_bad_line, self._seconds)
        return logs.unlabelled_rows(path, schema, frame, first)

    def _parsed(self, unparsed: _Unparsed, first: int) -> Chunk:
        options = self.options
        frame = unparsed.parse(unparsed.content, self.path, first, options.on_bad_line)
        skipped = unparsed.skipped + unparsed.rows - len(frame)
        place = Place(self.path, self.number, first, unparsed.place, self.before)
        split = self.row_split and self.row_split(frame, place)
        frame = normalize_columns(frame, options, self.path, first)
        if split is not None:
            frame = frame.with_columns(split)
        if not self.drop:
            return Chunk(frame, skipped, 0, unparsed.keys)
        # A function of the place in the data alone, so that a resumed run draws the same.
        rng = np.random.default_rng([options.seed, self.number, first - unparsed.place])
        drawn = rng.random(unparsed.place + len(frame))[unparsed.place :]
        kept = drawn >= options.drop_negatives
        kept |= frame["label"].to_numpy() > 0
        if split is not None:
            kept |= split.to_numpy() > 0  # validation and test keep all examples
        return Chunk(frame.filter(pl.Series(kept)), skipped, int(np.sum(~kept)), unparsed.keys)


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does."""
    with path.open("rb") as file:
        return file.read(len(_PARQUET)) == _PARQUET


def is_criteo_binary(path: Path) -> bool:
    """Whether a file of Criteo's data, which may be compressed, has MLPerf's binary form."""
    with open_bytes(path) as content:
        return criteo_binary.is_binary(content.peek(4))


def _chunks(content: Bytes, size: int) -> Iterator[bytes]:
    """Yields chunks of ``size`` bytes; the last one may be shorter."""
    chunk = b""
    while more := content.read(size - len(chunk)):
        chunk += more
        if len(chunk) == size:
            yield chunk
            chunk = b""
    if chunk:
        yield chunk


def _parse_unlabelled(
    chunk: bytes, path: Path, first_line: int, on_bad_line: OnBadLine
) -> pl.DataFrame:
    """As `criteo_text.parse_chunk`, of lines without labels, which are null."""
    frame = criteo_text.parse_chunk(criteo_text.with_labels(chunk), path, first_line, on_bad_line)
    return frame.with_columns(pl.lit(None, pl.Int64).alias("label"))


def ahead(chunks: Iterator[T]) -> Generator[T, None, None]:
    """Yields the same chunks; the next is made in a thread while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = pool.submit(next, chunks, None)
            yield chunk
