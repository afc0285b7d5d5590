"""Reads CSV files with a header, as frames of strings."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from dlrm_jax.data.formats.lines import OnBadLine, decoded
from dlrm_jax.errors import UserError

_FRAME_CHARACTERS = 1 << 27

# Python's reader, as Polars' silently fills short lines with nulls and names no line.


MISSING = ("", "NA", "NaN", "nan", "null")
"""Fields that are missing values."""


class Records:
    """The records of a CSV file, read several at a time.

    Args:
        chunks: whole lines of UTF-8 text, such as `lines.whole_lines` yields.
        path: the file, for messages.
        on_bad_line: whether records with too few or too many fields raise or are left out. A
            malformed quote and a field of more than 131,072 characters always raise.

    Attributes:
        columns: names in the header.
        skipped: number of records left out so far.

    Raises:
        UserError: there is no header, or a name is in it twice.
    """

    def __init__(self, chunks: Iterable[bytes], path: Path, on_bad_line: OnBadLine):
        self._path = path
        self._on_bad_line = on_bad_line
        self._reader = csv.reader(self._lines(chunks), strict=True)
        self._first = 1  # line of the record
        self.columns = self._next() or []
        self.skipped = 0
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
        """The records with as many fields as the header."""
        while (fields := self._next()) is not None:
            if len(fields) == len(self.columns):
                yield fields
            elif self._on_bad_line == "skip":
                self.skipped += 1
            else:
                found = len(fields) or "a blank line"
                raise UserError(
                    f"{self._path}, line {self._first}: expected {len(self.columns)} "
                    f"fields as in the header, found {found}. Correct or remove the line; if "
                    f"it is the last one, the file may be incomplete"
                )

    def _next(self) -> list[str] | None:
        self._first = self._reader.line_num + 1
        try:
            return next(self._reader, None)
        except csv.Error as error:
            what = str(error)
            if what == "unexpected end of data":
                what = "a quote begins in this record, and the file ends before the closing one"
            raise UserError(
                f"{self._path}, line {self._first}: {what}; expected fields separated "
                f"by commas, in quotes where they hold commas, quotes or line breaks"
            ) from error

    def _lines(self, chunks: Iterable[bytes]) -> Iterator[str]:
        number, encoding = 1, "utf-8-sig"  # a byte order mark comes first or not at all
        for chunk in chunks:
            text = decoded(chunk, self._path, encoding, number)
            yield from io.StringIO(text, newline="\n")
            number += chunk.count(b"\n")
            encoding = "utf-8"


def without_missing(frame: pl.DataFrame, missing: Sequence[str]) -> pl.DataFrame:
    """A frame of texts in which missing values are null."""
    return frame.with_columns(pl.all().replace(list(missing), None)) if missing else frame
