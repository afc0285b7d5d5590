"""Parses raw Criteo text in chunks of whole lines.

A line holds a label, 13 integers and 26 hexadecimal categoricals, separated by tabs; integers and
categoricals may be empty. Polars parses good input without Python code per line. Only a bad chunk
is read again, line by line, to find the first bad line and its error.
"""

import re
from pathlib import Path

import polars as pl

from dlrm_jax.data.formats.lines import OnBadLine
from dlrm_jax.errors import UserError

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORICALS = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *INTEGERS, *CATEGORICALS)

_OWN = (
    " A log with columns of its own, as CSV or Parquet, needs a schema: python -m dlrm_jax "
    "preprocess --schema makes arrays of it."
)
_FIELD_BYTES = b"0123456789abcdefABCDEF-"
_LINE_SEPARATORS = b"\t" * (len(COLUMNS) - 1) + b"\n"
_HEX_DIGITS = 8  # categoricals are 32-bit hashes
_SCHEMA = dict.fromkeys(COLUMNS[:14], pl.Int64) | dict.fromkeys(CATEGORICALS, pl.String)


def is_unlabelled(first: bytes) -> bool:
    """Whether the lines have no label, as in Kaggle's test file, by the file's first bytes."""
    return first.split(b"\n", 1)[0].count(b"\t") == len(COLUMNS) - 2


def with_labels(chunk: bytes) -> bytes:
    """Adds the label 0 to whole lines without labels."""
    return b"0\t" + chunk[:-1].replace(b"\n", b"\n0\t") + b"\n"


def parse_chunk(
    chunk: bytes, path: Path, first_line: int, on_bad_line: OnBadLine = "stop"
) -> pl.DataFrame:
    """Parses whole lines, each ended by a line feed; the first one's number counts from 1.

    Returns:
        A frame with ``label`` and `INTEGERS`, Int64, and `CATEGORICALS`, UInt32. Empty fields are
        null.

    Raises:
        UserError: a line is malformed; the message names the first one and its column.
    """
    frame = _parse(chunk)
    if frame is None and on_bad_line == "skip":
        lines = chunk[:-1].split(b"\n")
        frame = _parse(b"".join(line + b"\n" for line in lines if not _line_error(line)))
    if frame is not None:
        return frame
    for number, line in enumerate(chunk[:-1].split(b"\n"), first_line):
        if error := _line_error(line):
            own = number == 1 and line.count(b"\t") not in (len(COLUMNS) - 1, len(COLUMNS) - 2)
            raise UserError(f"{path}, line {number}{error}{_OWN if own else ''}")
    raise AssertionError(f"{path}: lines from {first_line} on failed to parse, yet all look right")


def _parse(chunk: bytes) -> pl.DataFrame | None:
    """None if any line is malformed."""
    # Polars silently fills short lines with nulls and skips blank ones. Deleting the legal bytes
    # of fields must leave the separators of full lines; bad bytes remain, too.
    separators = chunk.translate(None, _FIELD_BYTES)
    if separators != _LINE_SEPARATORS * (len(separators) // len(_LINE_SEPARATORS)):
        return None
    text = pl.col(CATEGORICALS)
    try:
        frame = pl.read_csv(
            chunk, has_header=False, separator="\t", quote_char=None, schema=_SCHEMA
        )
        checks = frame.select(
            text.str.len_bytes().max(), label=pl.col("label").is_in([0, 1]).fill_null(False).all()
        )
        frame = frame.with_columns(text.str.to_integer(base=16, dtype=pl.UInt32))
    except pl.exceptions.ComputeError:
        return None
    longest = checks.select(pl.max_horizontal(CATEGORICALS)).item() or 0
    return frame if checks["label"].all() and longest <= _HEX_DIGITS else None


def _is_int64(field: bytes) -> bool:
    digits = re.fullmatch(rb"(-?)0*([0-9]{1,19})", field)
    return digits is not None and -(2**63) <= int(digits[1] + digits[2]) < 2**63


def _expected(column: str, field: bytes) -> str:
    """The requirement that a field fails, in words; empty if it is good."""
    if column == "label":
        return "" if re.fullmatch(rb"-?0+|0*1", field) else "0 or 1"
    if column in INTEGERS:
        return "" if not field or _is_int64(field) else "a 64-bit integer or nothing"
    good = re.fullmatch(rb"[0-9a-fA-F]{0,%d}" % _HEX_DIGITS, field)
    return "" if good else f"up to {_HEX_DIGITS} hexadecimal digits or nothing"


def _line_error(line: bytes) -> str:
    """The error of a line, as the text after its number in a message; empty if there is none."""
    if line.endswith(b"\r"):
        return (
            ": the line ends with CR LF; expected LF alone, as in Criteo's own files. "
            "Convert the file, for example with dos2unix."
        )
    fields = line.split(b"\t")
    if len(fields) != len(COLUMNS):
        found = f"{len(fields)}" if line else "a blank line"
        return (
            f": expected {len(COLUMNS)} tab-separated fields (a label, 13 integers, 26 "
            f"hexadecimal values), found {found}. Correct or remove the line; if it is the "
            "last one, the download may be incomplete."
        )
    for column, (name, field) in enumerate(zip(COLUMNS, fields, strict=True), 1):
        if expected := _expected(name, field):
            return (
                f", column {column} ({name}): expected {expected}, found {_shown(field)}. "
                "Correct or remove the line."
            )
    return ""


def _shown(field: bytes) -> str:
    """A field for a message: short and printable, with undecodable bytes as escapes."""
    text = repr(field[:40])[1:]
    return text if len(field) <= 40 else f"{text}… ({len(field)} bytes)"
