"""Raw Criteo text, parsed in blocks of bytes.

A line holds a label, 13 integers and 26 hexadecimal categoricals, tab-separated; integers and
categoricals may be empty. Good input is parsed by Polars without Python code per line; only a block
that is found to be bad is read again, line by line, to say where and what is wrong.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl
from jaxtyping import Float32, UInt32

from dlrm_jax.errors import UserError

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORICALS = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = ("label", *INTEGERS, *CATEGORICALS)

BLOCK_BYTES = 64 << 20

_MAX_LINE_BYTES = 1 << 16  # a line of 40 fields has less than 600 bytes
_FIELD_BYTES = b"0123456789abcdefABCDEF-"
_LINE_SEPARATORS = b"\t" * (len(COLUMNS) - 1) + b"\n"
_HEX_DIGITS = 8  # categoricals are 32-bit hashes
_SCHEMA = dict.fromkeys(COLUMNS[:14], pl.Int64) | dict.fromkeys(CATEGORICALS, pl.String)


@dataclass(frozen=True)
class RawBlock:
    """N consecutive lines.

    Attributes:
        labels: 0 or 1.
        dense: log(x + 1) of the integers; missing and negative ones count as 0.
        values: Categorical values, 0 where missing.
        missing: Bit c is set where categorical feature c (from 0) is empty.
    """

    labels: Float32[np.ndarray, " N"]
    dense: Float32[np.ndarray, "N 13"]
    values: UInt32[np.ndarray, "26 N"]
    missing: UInt32[np.ndarray, " N"]


def read_blocks(
    path: Path, update_hash: Callable[[bytes], object], block_bytes: int = BLOCK_BYTES
) -> Iterator[RawBlock]:
    """Parses a file block by block, in memory proportional to the block and not to the file.

    Args:
        path: A file in Criteo's layout.
        update_hash: Called with all bytes of the file, in order, as they are read.
        block_bytes: Bytes read at a time; blocks end where lines do.

    Raises:
        UserError: If the file is empty or a line isn't as described above; names line and column.
        OSError: If the file can't be read.
    """
    line = 1
    for block in _whole_lines(path, update_hash, block_bytes):
        parsed = parse_block(block, path, line)
        line += len(parsed.labels)
        yield parsed
    if line == 1:
        raise UserError(
            f"{path} is empty; expected lines of {len(COLUMNS)} tab-separated fields (a label, "
            "13 integers, 26 hexadecimal values). Was the download complete?"
        )


def _whole_lines(
    path: Path, update_hash: Callable[[bytes], object], block_bytes: int
) -> Iterator[bytes]:
    """Yields the file in pieces that end with a line feed."""
    rest: list[bytes] = []
    with path.open("rb") as file:
        while data := file.read(block_bytes):
            update_hash(data)
            end = data.rfind(b"\n") + 1
            if end:
                yield b"".join([*rest, data[:end]])
                rest = []
            rest.append(data[end:])
            if sum(map(len, rest)) > max(_MAX_LINE_BYTES, block_bytes):
                raise UserError(
                    f"{path} has a line of more than {_MAX_LINE_BYTES:,} bytes; it isn't a text "
                    f"file in Criteo's layout ({len(COLUMNS)} tab-separated fields a line). "
                    "Is it still compressed?"
                )
    if last := b"".join(rest):  # the file doesn't end with a line feed
        yield last + b"\n"


def parse_block(block: bytes, path: Path, first_line: int) -> RawBlock:
    """Parses whole lines, each ended by a line feed.

    Args:
        block: The lines.
        path: The file that they come from, for messages.
        first_line: The number of the first one in it, from 1.

    Raises:
        UserError: Names the first bad line and column.
    """
    # Polars fills short lines with nulls in silence and skips blank ones. What remains when the
    # legal bytes of fields are deleted must be the separators of full lines; bad bytes remain, too.
    if block.translate(None, _FIELD_BYTES) != _LINE_SEPARATORS * block.count(b"\n"):
        _raise_first_error(block, path, first_line)
    try:
        frame = pl.read_csv(
            block, has_header=False, separator="\t", quote_char=None, schema=_SCHEMA
        )
        text = pl.col(CATEGORICALS)
        longest = frame.select(text.str.len_bytes().max()).max_horizontal().item()
        values = frame.select(text.str.to_integer(base=16, dtype=pl.UInt32))
    except pl.exceptions.ComputeError:
        _raise_first_error(block, path, first_line)
    labels = frame["label"]
    if (longest or 0) > _HEX_DIGITS or not labels.is_in([0, 1]).fill_null(False).all():
        _raise_first_error(block, path, first_line)

    integers = frame.select(pl.col(INTEGERS).fill_null(0).clip(lower_bound=0).cast(pl.Float64))
    missing = np.zeros(len(frame), np.uint32)
    for bit, name in enumerate(CATEGORICALS):
        if values[name].null_count():
            missing |= values[name].is_null().to_numpy().astype(np.uint32) << np.uint32(bit)
    return RawBlock(
        labels=labels.to_numpy().astype(np.float32),
        dense=np.log1p(integers.to_numpy()).astype(np.float32, order="C"),
        values=np.stack([values[name].fill_null(0).to_numpy() for name in CATEGORICALS]),
        missing=missing,
    )


def _is_int64(field: bytes) -> bool:
    digits = re.fullmatch(rb"(-?)0*([0-9]{1,19})", field)
    return digits is not None and -(2**63) <= int(digits[1] + digits[2]) < 2**63


def _rule(column: str) -> tuple[str, Callable[[bytes], bool]]:
    """What a field must be, in words and as a test."""
    if column == "label":
        return "0 or 1", lambda field: re.fullmatch(rb"-?0+|0*1", field) is not None
    if column in INTEGERS:
        return "a 64-bit integer or nothing", lambda field: not field or _is_int64(field)
    hexadecimal = re.compile(rb"[0-9a-fA-F]{0,%d}" % _HEX_DIGITS)
    return (
        f"up to {_HEX_DIGITS} hexadecimal digits or nothing",
        lambda field: hexadecimal.fullmatch(field) is not None,
    )


_RULES = {column: _rule(column) for column in COLUMNS}


def _raise_first_error(block: bytes, path: Path, first_line: int) -> NoReturn:
    """Reads a bad block again, slowly, and says what is wrong."""
    for number, line in enumerate(block[:-1].split(b"\n"), first_line):
        place = f"{path}, line {number}"
        if line.endswith(b"\r"):
            raise UserError(
                f"{place}: the line ends with CR LF; expected LF alone, as in Criteo's own files. "
                "Convert the file, for example with dos2unix."
            )
        fields = line.split(b"\t")
        if len(fields) != len(COLUMNS):
            found = f"{len(fields)}" if line else "a blank line"
            raise UserError(
                f"{place}: expected {len(COLUMNS)} tab-separated fields (a label, 13 integers, 26 "
                f"hexadecimal values), found {found}. Correct or remove the line; if it is the "
                "last one, the download may be incomplete."
            )
        for column, (name, field) in enumerate(zip(COLUMNS, fields, strict=True), 1):
            expected, accepts = _RULES[name]
            if not accepts(field):
                raise UserError(
                    f"{place}, column {column} ({name}): expected {expected}, found "
                    f"{_shown(field)}. Correct or remove the line."
                )
    raise AssertionError(f"{path}: lines from {first_line} on failed to parse, yet all look right")


def _shown(field: bytes) -> str:
    """A field for a message: short, printable, undecodable bytes as escapes."""
    text = repr(field[:40])[1:]
    return text if len(field) <= 40 else f"{text}… ({len(field)} bytes)"
