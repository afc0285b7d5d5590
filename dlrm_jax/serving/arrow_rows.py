"""Raw rows as a stream of Arrow's IPC format, checked before anything of it is decoded.

https://arrow.apache.org/docs/format/Columnar.html has the format. A few bytes of it can stand for
any number of values: compressed ones, the same bytes again for each column or text, values without
bytes. So what is decoded is limited by the bytes that have come.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from flatbuffers import number_types
from flatbuffers.table import Table

from dlrm_jax.errors import UserError, cut, shown

MEDIA_TYPE = "application/vnd.apache.arrow.stream"

_CONTINUATION = b"\xff\xff\xff\xff"
_SCHEMA, _RECORD_BATCH = 1, 3  # types of a message
_NULL, _LISTS = 1, {12, 16, 21}
_FLAT = {_NULL, 2, 3, 5, 6, 7, 8, 9, 10, 18, 20, 24}  # numbers, booleans, times and text
_FAILURES = (struct.error, ValueError, IndexError, TypeError, OverflowError, UserError)

_POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)  # a panic is none of the former


class ArrowRows:
    """The rows of a request.

    Args:
        body: body of the request.

    Raises:
        UserError: it is no such stream, is cut short, or has columns of other types than numbers,
            booleans, times, text and lists of them.
    """

    def __init__(self, body: bytes):
        self._body = body
        try:
            self._rows = _checked(body)
        except _FAILURES as error:
            raise _refusal(error) from error

    def __len__(self) -> int:
        return self._rows

    @functools.cached_property
    def columns(self) -> dict[str, pl.Series]:
        """The columns by name.

        Raises:
            UserError: their bytes don't fit their types.
        """
        try:
            frame = pl.read_ipc_stream(self._body)
            if len(frame) != self._rows:
                raise ValueError(f"expected {self._rows} rows, got {len(frame)}")
            for column in frame:
                _check_texts(column, len(self._body))
        except (*_FAILURES, OSError, *_POLARS) as error:
            raise _refusal(error) from error
        return {column.name: column for column in frame}


def _refusal(error: BaseException) -> UserError:
    return UserError(f"expected rows as an uncompressed stream of Arrow: {cut(str(error), 300)}")


class _Message(NamedTuple):
    """A message.

    Attributes:
        kind: type of its header.
        header: its header.
        size: bytes of its body.
    """

    kind: int
    header: Table
    size: int


def _checked(body: bytes) -> int:
    """The number of rows of a stream that takes no more memory than its bytes."""
    messages = _messages(body)
    schema = next(messages, None)
    if schema is None or schema.kind != _SCHEMA:
        raise ValueError("it has no schema")
    for field in _tables(schema.header, 1):
        _check_field(field)
    return sum(_rows_of(batch, len(body)) for batch in messages)


def _messages(body: bytes) -> Iterator[_Message]:
    """The messages up to the mark of the end."""
    if body.startswith(b"ARROW1"):
        raise ValueError("it is of the file format; write a stream")
    first = 0
    while True:
        mark = body[first : first + 4]
        length = int.from_bytes(body[first + 4 : first + 8], "little")
        if mark != _CONTINUATION or len(body) < first + 8 + length:
            raise ValueError(f"it is cut short or malformed at byte {first}")
        first += 8
        if not length:
            break
        metadata = body[first : first + length]
        message = Table(metadata, int.from_bytes(metadata[:4], "little"))
        kind = _number(message, 1, number_types.Uint8Flags)
        size = _number(message, 3, number_types.Int64Flags)
        first += length + size
        if not 0 <= size <= len(body) - first + size:
            raise ValueError(f"it is cut short: a message has {size} bytes")
        if (header := _table(message, 2)) is None:
            raise ValueError("a message has no header")
        yield _Message(kind, header, size)
    if len(body) > first:
        raise ValueError(f"{len(body) - first} bytes are left behind it")


def _check_field(field: Table) -> None:
    place = field.Offset(_slot(0))
    name = field.String(place + field.Pos).decode() if place else ""
    kind, children = _number(field, 2, number_types.Uint8Flags), [*_tables(field, 5)]
    if _table(field, 4) is not None:
        raise ValueError(f"column {shown(name)} is a dictionary; send its values")
    if kind in _LISTS and len(children) == 1:
        (inner,) = children
        kind, children = _number(inner, 2, number_types.Uint8Flags), [*_tables(inner, 5)]
        if _table(inner, 4) is not None:
            raise ValueError(f"column {shown(name)} has dictionaries; send their values")
    if kind not in _FLAT or children:
        raise ValueError(
            f"column {shown(name)}: expected numbers, booleans, times, text, or lists of them"
        )


def _rows_of(batch: _Message, most: int) -> int:
    """The rows of a batch, each of whose bytes is a part of one value.

    Args:
        batch: message.
        most: most values of a column.
    """
    if _table(batch.header, 3) is not None:
        raise ValueError("it is compressed")
    if batch.kind != _RECORD_BATCH:
        raise ValueError("a message behind the schema is no batch of rows")
    rows = _number(batch.header, 0, number_types.Int64Flags)
    nodes, buffers = _pairs(batch.header, 1), _pairs(batch.header, 2)
    if rows < 0 or (nodes[:, 0] < 0).any() or (buffers < 0).any():
        raise ValueError("a length is negative")
    if (nodes[:, 0] > max(most, rows)).any():
        raise ValueError(f"a list column has more than {most} values, the bytes of the body")
    ends = [0, *itertools.accumulate(map(int, buffers[:, 1]))]
    if ends[-1] > batch.size or (buffers.sum(axis=1) > batch.size).any():
        raise ValueError("buffers overlap, or end behind their message")
    return rows


def _check_texts(column: pl.Series, most: int) -> None:
    flat = column.explode() if isinstance(column.dtype, pl.List | pl.Array) else column
    if flat.dtype == pl.String and (flat.str.len_bytes().sum() or 0) > most:
        raise ValueError(f"column {shown(column.name)} has more bytes of text than the body")


# -- Flatbuffers, https://flatbuffers.dev/internals ------------------------------------


def _slot(field: int) -> int:
    return 4 + 2 * field


def _number(table: Table, field: int, flags: Any) -> int:
    place = table.Offset(_slot(field))
    return table.Get(flags, place + table.Pos) if place else 0


def _table(table: Table, field: int) -> Table | None:
    place = table.Offset(_slot(field))
    return Table(table.Bytes, table.Indirect(place + table.Pos)) if place else None


def _tables(table: Table, field: int) -> Iterator[Table]:
    if place := table.Offset(_slot(field)):
        first, count = table.Vector(place), table.VectorLen(place)
        if count > len(table.Bytes):
            raise ValueError(f"a vector has {count} tables")
        for i in range(count):
            yield Table(table.Bytes, table.Indirect(first + 4 * i))


def _pairs(table: Table, field: int) -> np.ndarray:
    """A vector of pairs of int64, [N, 2]."""
    if not (place := table.Offset(_slot(field))):
        return np.zeros((0, 2), np.int64)
    first, count = table.Vector(place), table.VectorLen(place)
    return np.frombuffer(table.Bytes, "<i8", 2 * count, first).reshape(count, 2)
