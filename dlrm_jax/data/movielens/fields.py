"""Reads text files with a record per line as frames and checks every field."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from dlrm_jax.data.formats.csv_text import Records
from dlrm_jax.data.formats.lines import decoded
from dlrm_jax.errors import UserError


class Kind(NamedTuple):
    """The Polars type of a field, its description for messages, and its range."""

    dtype: Any
    words: str
    lowest: float | int = 0
    highest: float | int = 0


TEXT = Kind(pl.String, "text")
"""Any text; empty text is a missing value."""
ID = Kind(pl.Int64, "a whole number", 0, 2**31 - 1)
TIME = Kind(pl.Int64, "a number of seconds since 1970", 0, 2**32 - 1)
RATING = Kind(pl.Float32, "a number of stars from 0.5 to 5", 0.5, 5)
AGE = Kind(pl.Int64, "an age from 0 to 150", 0, 150)
FLAG = Kind(pl.Int64, "0 or 1", 0, 1)

_ROWS_PER_FRAME = 1 << 16

# Polars' reader of separated fields fills short lines with nulls and skips blank ones; its reader
# of lines leaves all as they are, so that messages can name the line.


def read_fields(
    path: Path, separator: str, columns: Mapping[str, Kind], encoding: str = "utf-8"
) -> pl.DataFrame:
    """Reads a file without a header; ``columns`` are all fields of a line, in order.

    Raises:
        UserError: there is no line, a line has more or fewer fields, or a field has the wrong kind.
    """
    return _parsed(_lines(path, encoding), path, separator, columns, first_line=1)


def read_table(path: Path, separator: str, columns: Mapping[str, Kind]) -> pl.DataFrame:
    """Reads columns of a file with a header. A name ends at a colon: RecBole adds the type.

    Raises:
        UserError: the same errors as `read_fields`, or a column is missing.
    """
    lines, names = _lines(path, "utf-8"), header(path, separator)
    _check_header(names, columns, path)
    if len(lines) == 1:
        raise UserError(f"{path}: expected lines below the header, there is none; get it again")
    kinds = {name: columns.get(name, TEXT) for name in names}
    return _parsed(lines[1:], path, separator, kinds, first_line=2).select(list(columns))


def header(path: Path, separator: str) -> list[str]:
    """The names in the first line, each up to a colon."""
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline()
    return [name.partition(":")[0] for name in first.rstrip("\r\n").split(separator)]


def read_csv(path: Path, columns: Mapping[str, Kind]) -> pl.DataFrame:
    """Reads columns of a CSV file with a header, in which fields may be quoted.

    Python's reader parses it, so it shouldn't be large.

    Raises:
        UserError: the same errors as `read_table`.
    """
    records = Records([_content(path)], path, "stop")
    _check_header(records.columns, columns, path)
    frame = pl.concat(records.frames(list(columns), _ROWS_PER_FRAME))
    return _checked(frame, path, columns, first_line=2)


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.strip():
        raise UserError(f"{path}: expected a record a line, the file is empty; get it again")
    return content


def _lines(path: Path, encoding: str) -> pl.Series:
    content = _content(path)
    # Python decodes small files only: files of ratings are ASCII.
    content = content.removeprefix(codecs.BOM_UTF8)
    text = content if content.isascii() else decoded(content, path, encoding).encode()
    return pl.read_lines(text, name="line")["line"]


def _check_header(names: Sequence[str], columns: Mapping[str, Kind], path: Path) -> None:
    missing = [name for name in columns if name not in names]
    if missing or len(set(names)) < len(names):
        raise UserError(
            f"{path}, line 1: expected a header with the names {', '.join(columns)}, once each, "
            f"found {', '.join(names)}"
        )


def _parsed(
    lines: pl.Series, path: Path, separator: str, columns: Mapping[str, Kind], first_line: int
) -> pl.DataFrame:
    counts = lines.str.count_matches(separator, literal=True) + 1
    bad = counts != len(columns)
    if bad.any():
        row = bad.arg_max() or 0
        found = f"{counts[row]} in {_shown(lines[row])}" if lines[row] else "a blank line"
        raise UserError(
            f"{path}, line {first_line + row}: expected {len(columns)} fields "
            f"({', '.join(columns)}) separated by {separator!r}, found {found}. Correct or remove "
            f"the line; if it is the last one, the file may be incomplete"
        )
    split = lines.str.split_exact(separator, len(columns) - 1).struct.rename_fields(list(columns))
    return _checked(split.struct.unnest(), path, columns, first_line)


def _checked(
    frame: pl.DataFrame, path: Path, columns: Mapping[str, Kind], first_line: int
) -> pl.DataFrame:
    """The columns in their types; empty text becomes null."""
    checked = []
    for name, kind in columns.items():
        text = frame[name]
        if kind.dtype == pl.String:
            checked.append(text.replace("", None))
            continue
        numbers = text.cast(kind.dtype, strict=False)
        good = numbers.is_between(kind.lowest, kind.highest).fill_null(False)
        if not good.all():
            row = good.arg_min() or 0
            raise UserError(
                f"{path}, line {first_line + row}, {name}: expected {kind.words}, found "
                f"{_shown(text[row] or '')}. Correct or remove the line"
            )
        checked.append(numbers)
    return pl.DataFrame(checked)


def _shown(text: str) -> str:
    """A text for a message: short and printable."""
    return repr(text[:60]) + ("…" if len(text) > 60 else "")
