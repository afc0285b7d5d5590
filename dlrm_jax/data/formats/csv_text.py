"""Reads CSV files, as frames of strings."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from dlrm_jax.data.formats.dialect import Dialect
from dlrm_jax.data.formats.lines import OnBadLine, decoded
from dlrm_jax.errors import UserError

_FRAME_CHARACTERS = 1 << 27

# Python's reader, as Polars' silently fills short lines with nulls and names no line. It splits at
# one character, so that one stands for a longer separator, and is put back within quotes.

COMMA = Dialect()
"""The dialect of a file with commas and a header."""

MISSING = ("", "NA", "NaN", "nan", "null")
"""Fields that are missing values."""


class Records:
    """The records of a CSV file, read several at a time.

    Args:
        chunks: whole lines of UTF-8 text, such as `lines.whole_lines` yields.
        path: the file, for messages.
        on_bad_line: whether records with too few or too many fields raise or are left out. A
            malformed quote and a field of more than 131,072 characters always raise.
        dialect: separator, and names if the file has no header.

    Attributes:
        columns: names of the columns.
        skipped: number of records left out so far.

    Raises:
        UserError: there is no header, a name is in it twice, or it is there beside given names.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        path: Path,
        on_bad_line: OnBadLine,
        dialect: Dialect = COMMA,
    ):
        self._path = path
        self._on_bad_line = on_bad_line
        self._dialect = dialect
        lines = self._lines(chunks)
        self._reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True)
        self._first = 1  # line of the record
        self._records = iter(self._next, None)
        self.skipped = 0
        first = next(self._records, None)
        self.columns = list(dialect.header) or first or []
        if dialect.header:
            if first == self.columns:
                raise UserError(
                    f"{path}, line 1: expected a record, got the names of the columns; leave out "
                    f"the schema's header, which is for files without this line"
                )
            self._records = itertools.chain([] if first is None else [first], self._records)
            return
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        if twice or not self.columns:
            found = f"{twice[0]!r} twice" if twice else "nothing"
            raise UserError(f"{path}: expected a first line with the columns' names, got {found}")

    def frames(
        self, columns: Sequence[str], rows: int, missing: Sequence[str] = MISSING
    ) -> Iterator[pl.DataFrame]:
        """Yields frames; the last one may have no rows. Missing values are null.

        Args:
            columns: names of the wanted columns.
            rows: rows per frame. Very long values are yielded in several frames, of so many rows
                together, so that memory is bounded.
            missing: fields that are missing values; none leaves the text as it is.

        Raises:
            UserError: a line is malformed; the message names the first one.
        """
        places = [self.columns.index(name) for name in columns]
        complete = self._complete()
        left, ended = rows, False
        while not ended:
            records, characters = [], 0
            for fields in itertools.islice(complete, left):
                records.append([fields[i] for i in places])
                characters += sum(map(len, records[-1]))
                if characters > _FRAME_CHARACTERS:
                    break
            left -= len(records)
            ended = left > 0 and characters <= _FRAME_CHARACTERS
            left = left or rows
            fields = list(zip(*records, strict=True)) or [()] * len(places)
            series = map(pl.Series, columns, fields, [pl.String] * len(places))
            yield without_missing(pl.DataFrame(list(series)), missing)

    def _complete(self) -> Iterator[list[str]]:
        """The records with as many fields as there are columns."""
        for fields in self._records:
            if len(fields) == len(self.columns):
                yield fields
            elif self._on_bad_line == "skip":
                self.skipped += 1
            else:
                found = len(fields) or "a blank line"
                header = "the header"
                if self._dialect.header:
                    header = f"the schema's header ({', '.join(self.columns)})"
                raise UserError(
                    f"{self._path}, line {self._first}: expected {len(self.columns)} fields as in "
                    f"{header}, found {found}; fields are separated by "
                    f"{self._dialect.separator!r}. Correct or remove the line; if it is the last "
                    f"one, the file may be incomplete"
                )

    def _next(self) -> list[str] | None:
        self._first = self._reader.line_num + 1
        separator, delimiter = self._dialect.separator, self._dialect.delimiter
        try:
            fields = next(self._reader, None)
        except csv.Error as error:
            what = str(error).replace(f"'{delimiter}'", repr(separator))
            if what == "unexpected end of data":
                what = "a quote begins in this record, and the file ends before the closing one"
            raise UserError(
                f"{self._path}, line {self._first}: {what}; expected fields separated by "
                f"{separator!r}, in quotes where they hold it, quotes or line breaks"
            ) from error
        if fields and delimiter != separator:
            return [field.replace(delimiter, separator) for field in fields]
        return fields

    def _lines(self, chunks: Iterable[bytes]) -> Iterator[str]:
        separator, delimiter = self._dialect.separator, self._dialect.delimiter
        number, encoding = 1, "utf-8-sig"  # a byte order mark comes first or not at all
        for chunk in chunks:
            text = decoded(chunk, self._path, encoding, number)
            if delimiter != separator:
                if delimiter in text:
                    line = number + text.count("\n", 0, text.index(delimiter))
                    raise UserError(
                        f"{self._path}, line {line}: found the character {delimiter!r}, which "
                        f"can't be read beside a separator of several characters "
                        f"({separator!r}); remove it"
                    )
                text = text.replace(separator, delimiter)
            yield from io.StringIO(text, newline="\n")
            number += chunk.count(b"\n")
            encoding = "utf-8"


def without_missing(frame: pl.DataFrame, missing: Sequence[str]) -> pl.DataFrame:
    """A frame of texts in which missing values are null."""
    return frame.with_columns(pl.all().replace(list(missing), None)) if missing else frame
