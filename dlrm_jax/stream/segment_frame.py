"""The rows that the bytes of a segment or of messages hold, as a frame of the schema's columns."""

from __future__ import annotations

import io
from collections.abc import Sequence

import msgspec
import polars as pl

from dlrm_jax.data.formats.parquet import reading
from dlrm_jax.data.preprocessing.logs import check_columns
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

_PARQUET, _ARROW = b"PAR1", b"ARROW1"


def frame_of_file(place: str, content: bytes, schema: Schema, advice: str) -> pl.DataFrame:
    """The rows of a Parquet file or an Arrow IPC file.

    Args:
        place: description of the file, for messages.
        content: its bytes.
        schema: meaning of the columns; the others aren't read.
        advice: advice on a file of another format.

    Raises:
        UserError: the file is damaged or of another format, or a column is missing or has another
            type than its meaning asks for.
    """
    file = io.BytesIO(content)
    with reading(f"the segment {place}"):
        if content.startswith(_PARQUET):
            types, read = pl.read_parquet_schema(file), pl.read_parquet
        elif content.startswith(_ARROW):
            types, read = pl.read_ipc_schema(file), pl.read_ipc
        else:
            raise UserError(
                f"stream: {place}: expected a Parquet file or an Arrow IPC file, got one that "
                f"begins with {content[:8]!r}; {advice}"
            )
        check_columns(place, schema, types)
        return read(io.BytesIO(content), columns=_names(schema))


def frame_of_messages(
    places: Sequence[str], messages: Sequence[bytes], schema: Schema, advice: str
) -> pl.DataFrame:
    """The rows of messages, one message after the other.

    A message is JSON, a row a line, or the bytes of a Parquet file or an Arrow IPC file.

    Args:
        places: description of each message, for messages to the user.
        messages: their bytes, at least one.
        schema: meaning of the columns; others may be there.
        advice: advice on a malformed one.

    Raises:
        UserError: a message is malformed, or the messages are of several formats.
    """
    binary = [message.startswith((_PARQUET, _ARROW)) for message in messages]
    if not any(binary):
        return _of_json(places, messages, schema, advice)
    if not all(binary):
        raise UserError(
            f"stream: {places[binary.index(True)]} is a file of rows, and "
            f"{places[binary.index(False)]} isn't; expected one format in neighbouring messages"
        )
    frames = [
        frame_of_file(place, message, schema, advice)
        for place, message in zip(places, messages, strict=True)
    ]
    try:
        return pl.concat(frames, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"stream: the columns of messages {places[0]} to {places[-1]} have types that don't go "
            f"together: {error}; write each column with one type"
        ) from error


def _of_json(
    places: Sequence[str], messages: Sequence[bytes], schema: Schema, advice: str
) -> pl.DataFrame:
    """The rows of JSON messages; which ones are read at once makes no difference."""
    of_rows = [
        (place, line)
        for place, message in zip(places, messages, strict=True)
        for line in message.split(b"\n") or [b""]
        if line.strip() or not message.strip()
    ]
    lines = [line for _, line in of_rows]
    try:
        frame = _parsed(lines, schema)
    except pl.exceptions.PolarsError as error:
        for place, line in of_rows:
            try:
                _parsed([line], schema)
            except pl.exceptions.PolarsError as own:
                raise UserError(
                    f"stream: {place}: expected JSON, a row a line, such as "
                    f'{{"user": 7, "click": 1}}, or a Parquet or Arrow file, got '
                    f"{line[:100]!r} ({own}); {advice}"
                ) from own
        raise UserError(
            f"stream: the rows of messages {places[0]} to {places[-1]} are JSON, and not with each "
            f"other: {error}; give a column values of one type"
        ) from error
    if len(frame) != len(lines):
        raise UserError(
            f"stream: expected {len(lines):,} rows in messages {places[0]} to {places[-1]}, got "
            f"{len(frame):,}; write one row a line"
        )
    for name in _names(schema):
        rows = range(len(frame)) if name not in frame.columns else frame[name].is_null().arg_true()
        for row in rows:  # of which few are null
            if name not in msgspec.json.decode(lines[row]):
                raise UserError(
                    f"stream: {of_rows[row][0]} has no {name!r}, which the schema names, in "
                    f"{lines[row][:100]!r}; write null for a missing value"
                )
    check_columns(places[0], schema, frame.schema)
    for name in schema.categorical:
        kind = frame.schema[name]
        if getattr(kind, "inner", kind).is_float():  # large ids next to 0.5 would be rounded
            raise UserError(
                f"stream: messages {places[0]} to {places[-1]}, column {name}: expected integers "
                f"or text, got numbers with a point; write such values as text"
            )
    return frame.select(_names(schema))


def _parsed(lines: list[bytes], schema: Schema) -> pl.DataFrame:
    """One frame of JSON objects.

    Raises:
        polars.exceptions.PolarsError: a line is malformed, or types don't go together.
    """
    frame = pl.read_ndjson(io.BytesIO(b"\n".join(lines)), infer_schema_length=None)
    numbers = [x for x in (*schema.dense, *schema.bins) if frame.schema.get(x) == pl.Int64]
    return frame.with_columns(pl.col(numbers).cast(pl.Float64))  # as next to 0.5


def _names(schema: Schema) -> list[str]:
    return list(dict.fromkeys([*schema.columns, *schema.groups]))
