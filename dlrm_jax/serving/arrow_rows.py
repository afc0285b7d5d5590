"""Raw rows as a stream of Arrow's IPC format, checked before anything of it is decoded.

https://arrow.apache.org/docs/format/Columnar.html has the format. A few bytes of it can stand for
any number of values: compressed ones, the same bytes again for each column or text, values without
bytes. So what is decoded is limited by the bytes that have come.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from flatbuffers import number_types
from flatbuffers.table import Table

from dlrm_jax.errors import UserError, cut, shown

MEDIA_TYPE = "application/vnd.apache.arrow.stream"

_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + bytes(4)
_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3  # types of a message
_TIMESTAMP, _LISTS = 10, {12, 16, 21}
_FLAT = {1, 2, 3, 5, 6, 7, 8, 9, _TIMESTAMP, 18, 20, 24}  # null, numbers, booleans, times, text
# Binary, decimal, interval, struct, fixed-size binary, map, large and view binary.
_SKIPPED = _FLAT | _LISTS | {4, 7, 11, 13, 15, 17, 19, 23}  # Polars can pass over these
_DEPTH, _FIELD_BYTES = 16, 16  # most levels of a type; fewest bytes of a field
_FAILURES = (struct.error, ValueError, IndexError, TypeError, OverflowError, UserError)

_POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)  # a panic is none of the former


class ArrowRows:
    """The rows of a request.

    Args:
        body: body of the request.

    Raises:
        UserError: it is no such stream, is cut short, has two columns of one name, or one of a type
            that Polars can't pass over.
    """

    def __init__(self, body: bytes):
        try:
            messages = list(_messages(body))
            self._fields = _checked_fields(messages)
            batches = [x for x in messages[1:] if x.kind != _DICTIONARY_BATCH]
            self._rows = sum(_rows_of(batch, len(body)) for batch in batches)
        except _FAILURES as error:
            raise _refusal(error) from error
        # Only columns that aren't read have dictionaries, which may be of any size.
        parts = [messages[0].content, *(x.content for x in batches)]
        whole = len(batches) + 1 == len(messages)
        self._body = body if whole else b"".join([*parts, _END])
        self._columns: dict[tuple[str, ...], dict[str, pl.Series]] = {}

    def __len__(self) -> int:
        return self._rows

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [*self._fields]

    def columns(self, names: Sequence[str]) -> dict[str, pl.Series]:
        """Columns by name. The others aren't decoded.

        Args:
            names: names of columns that there are.

        Raises:
            UserError: they have other types than numbers, booleans, times, text and lists of them,
                or their bytes don't fit their types.
        """
        key = tuple(names)
        if key not in self._columns:
            self._columns[key] = self._decoded(names)
        return self._columns[key]

    def _decoded(self, names: Sequence[str]) -> dict[str, pl.Series]:
        try:
            for name in names:
                _check_type(name, self._fields[name])
            frame = pl.read_ipc_stream(self._body, columns=[*names])
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
        content: all its bytes.
    """

    kind: int
    header: Table
    size: int
    content: memoryview


def _checked_fields(messages: Sequence[_Message]) -> dict[str, Table]:
    """The fields of the schema by name, with types that Polars decodes or passes over."""
    if not messages or messages[0].kind != _SCHEMA:
        raise ValueError("it has no schema")
    header = messages[0].header
    fields: dict[str, Table] = {}
    left = len(header.Bytes) // _FIELD_BYTES
    for field in _tables(header, 1):
        name = _name(field)
        if name in fields:
            raise ValueError(f"two columns have the name {shown(name)}")
        fields[name] = field
        left = _check_skipped(name, field, left)
    return fields


def _check_skipped(name: str, field: Table, left: int, depth: int = 0) -> int:
    """Checks that Polars can pass over a column.

    Args:
        name: name of the column.
        field: field of it, or one within its type.
        left: most fields that may come: the same bytes could be a child of many.
        depth: number of types around it.

    Returns:
        The number that is left.
    """
    if left <= 0 or depth > _DEPTH:
        raise ValueError(f"column {shown(name)} has too many levels")
    if _kind(field) not in _SKIPPED:
        raise ValueError(
            f"column {shown(name)} is a union, a list view or run-end encoded; leave it out"
        )
    left -= 1
    for child in _tables(field, 5):
        left = _check_skipped(name, child, left, depth + 1)
    return left


def _messages(body: bytes) -> Iterator[_Message]:
    """The messages up to the mark of the end."""
    if body.startswith(b"ARROW1"):
        raise ValueError("it is of the file format; write a stream")
    first = 0
    while True:
        start = first
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
        yield _Message(kind, header, size, memoryview(body)[start:first])
    if len(body) > first:
        raise ValueError(f"{len(body) - first} bytes are left behind it")


def _check_type(name: str, field: Table) -> None:
    """Checks the type of a column that is decoded."""
    kind, children = _kind(field), [*_tables(field, 5)]
    if _table(field, 4) is not None:
        raise ValueError(f"column {shown(name)} is a dictionary; send its values")
    if kind in _LISTS and len(children) == 1:
        (field,) = children
        kind, children = _kind(field), [*_tables(field, 5)]
        if _table(field, 4) is not None:
            raise ValueError(f"column {shown(name)} has dictionaries; send their values")
    if kind not in _FLAT or children:
        raise ValueError(
            f"column {shown(name)}: expected numbers, booleans, times, text, or lists of them"
        )
    if kind == _TIMESTAMP and (zone := _text(_table(field, 3), 1)):
        try:
            pl.Series([], dtype=pl.Datetime("us", zone))
        except pl.exceptions.ComputeError:
            raise ValueError(
                f"column {shown(name)} has the unknown time zone {shown(zone)}"
            ) from None


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


def _text(table: Table | None, field: int) -> str:
    place = table.Offset(_slot(field)) if table else 0
    return table.String(place + table.Pos).decode() if table and place else ""


def _name(field: Table) -> str:
    return _text(field, 0)


def _kind(field: Table) -> int:
    return _number(field, 2, number_types.Uint8Flags)


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
