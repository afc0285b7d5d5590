"""Rows of JSON as columns whose types don't depend on which rows are read together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NoReturn

import msgspec
import polars as pl

from dlrm_jax.data.preprocessing.logs import check_columns
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.segment_frame import column_names

_NONE = type(None)
_Kind = Literal["number", "time", "id", "ids"]


class JsonRows:
    """Rows that are collected message by message.

    Ids are integers, text or booleans; one of several kinds in a column is the same as by itself,
    since 7 and the text 7 are one id. All other columns but the timestamp are numbers.

    Args:
        schema: meaning of the columns; others are ignored.
        advice: advice on a malformed message.
    """

    def __init__(self, schema: Schema, advice: str):
        self._schema, self._advice, self._names = schema, advice, column_names(schema)
        fields = [(f"f{i}", Any, msgspec.UNSET) for i in range(len(self._names))]
        renamed = {f"f{i}": name for i, name in enumerate(self._names)}
        self._kinds: list[_Kind] = [_kind(name, schema) for name in self._names]
        self._decode = msgspec.json.Decoder(msgspec.defstruct("Row", fields, rename=renamed)).decode
        self._columns: list[list[Any]] = [[] for _ in self._names]
        self._places: list[str] = []  # of the messages
        self.counts: list[int] = []
        """Rows of each message."""

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, place: str, content: bytes) -> bool:
        """Adds the rows of a message.

        Returns:
            False if its timestamps are text where those before are numbers, or the reverse; then it
            isn't added.

        Raises:
            UserError: a row is malformed.
        """
        rows = [self._values(place, line) for line in content.split(b"\n") if line.strip()]
        if content and not rows:
            self._fail(place, content, "there is no row")
        for i, kind in enumerate(self._kinds):
            of_times = {type(row[i]) for row in rows} - {_NONE}
            if kind == "time" and len(of_times | {type(x) for x in self._columns[i][:1]}) > 1:
                if len(of_times) > 1:
                    self._fail(place, content, f"{self._names[i]} is text and numbers")
                return False
        for row in rows:
            for column, value in zip(self._columns, row, strict=True):
                column.append(value)
        self._places.append(place)
        self.counts.append(len(rows))
        return True

    def frame(self) -> pl.DataFrame:
        """All rows.

        Raises:
            UserError: a column has values that its meaning doesn't take.
        """
        frame = pl.DataFrame(
            {
                name: _series(values, kind)
                for name, values, kind in zip(self._names, self._columns, self._kinds, strict=True)
            }
        )
        check_columns(self._places[0], self._schema, frame.schema)
        return frame

    def _values(self, place: str, line: bytes) -> list[Any]:
        """The values of a row, checked."""
        try:
            row = self._decode(line)
        except UnicodeDecodeError as error:
            self._fail(place, line, f"it isn't UTF-8 ({error.reason})")
        except (msgspec.DecodeError, RecursionError) as error:
            self._fail(place, line, str(error))
        values = [getattr(row, f"f{i}") for i in range(len(self._names))]
        for i, (name, kind, value) in enumerate(zip(self._names, self._kinds, values, strict=True)):
            if value is msgspec.UNSET:
                self._fail(place, line, f"it has no {name!r}; write null for a missing value")
            if kind == "ids":
                if not isinstance(value, list | _NONE):
                    self._fail(place, line, f"{name} isn't a list, as its bag length asks for")
                values[i] = value and [self._id(place, line, name, each) for each in value]
            elif kind == "id":
                values[i] = self._id(place, line, name, value)
            elif kind == "time" and isinstance(value, str):
                pass
            elif isinstance(value, bool) and (
                kind == "time" or name in self._schema.label_at_least
            ):
                self._fail(place, line, f"{name} is true or false, and must be a number")
            elif isinstance(value, int | float):
                try:
                    values[i] = float(value)
                except OverflowError:
                    self._fail(place, line, f"{name} is too large")
            elif value is not None:
                self._fail(place, line, f"{name} isn't a number")
        return values

    def _id(self, place: str, line: bytes, name: str, value: Any) -> int | str | bool | None:
        """An id; 7.0 is 7."""
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            return int(value)
        if value is not None and not isinstance(value, int | str | bool):
            kind = "a number with a point" if isinstance(value, float) else "an object or a list"
            self._fail(place, line, f"{name} is {kind}, and ids are integers or text in JSON")
        return value

    def _fail(self, place: str, line: bytes, what: str) -> NoReturn:
        raise UserError(
            f"stream: {place}: expected JSON, a row a line, such as "
            f'{{"user": 7, "click": 1}}, or a Parquet or Arrow file, got {line[:100]!r}: {what}; '
            f"{self._advice}"
        )


def _kind(name: str, schema: Schema) -> _Kind:
    """The kind of a column's values."""
    if name == schema.timestamp:
        return "time"
    if name in schema.bag_lengths:
        return "ids"
    others = name in schema.groups and name not in (*schema.dense, *schema.labels, schema.weight)
    return "id" if name in schema.categorical or others else "number"


def _series(values: list[Any], kind: _Kind) -> pl.Series:
    """A column of one type."""
    if kind == "number" or (kind == "time" and not isinstance(next(iter(values), None), str)):
        return pl.Series(values, dtype=pl.Float64)
    if kind == "time":
        return pl.Series(values, dtype=pl.String)
    flat = list(_flat(values)) if kind == "ids" else values
    types = {*map(type, flat)} - {_NONE}
    if types <= {int} and all(x is None or -(2**63) <= x < 2**63 for x in flat):
        dtype, convert = pl.Int64, None
    elif types <= {bool}:
        dtype, convert = pl.Boolean, None
    else:
        dtype, convert = pl.String, _text
    if kind == "id":
        return pl.Series([convert(x) for x in values] if convert else values, dtype=dtype)
    lists = [x and [convert(y) for y in x] for x in values] if convert else values
    return pl.Series(lists, dtype=pl.List(dtype))


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        yield from value or ()


def _text(value: Any) -> str | None:
    """The text by which an id is known."""
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
