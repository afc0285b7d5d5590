"""The rows of a Parquet file or an Arrow IPC file, as a frame of the schema's columns."""

from __future__ import annotations

import io

import polars as pl

from dlrm_jax.data.formats.parquet import reading
from dlrm_jax.data.preprocessing.logs import check_columns
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

_PARQUET, _ARROW = MAGIC = b"PAR1", b"ARROW1"
"""The first bytes of both."""


def frame_of_file(place: str, content: bytes, schema: Schema | None, advice: str) -> pl.DataFrame:
    """The rows of a Parquet file or an Arrow IPC file.

    Args:
        place: description of the file, for messages.
        content: its bytes.
        schema: meaning of the columns; the others aren't read. None reads all, of any types.
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
        if schema is None:
            return read(io.BytesIO(content))
        check_columns(place, schema, types)
        return read(io.BytesIO(content), columns=column_names(schema))


def column_names(schema: Schema) -> list[str]:
    """The columns of a stream that are read."""
    return list(dict.fromkeys([*schema.columns, *schema.groups]))
