"""Raw rows as JSON, all values of each row or those that all rows share once; or as Arrow."""

from __future__ import annotations

from typing import Any

import msgspec
import polars as pl

from dlrm_jax.errors import UserError, cut
from dlrm_jax.serving.arrow_rows import MEDIA_TYPE, ArrowRows
from dlrm_jax.serving.column_rows import rows_of_columns
from dlrm_jax.serving.served_model import Rows, ServedModel


class RawRows(msgspec.Struct, forbid_unknown_fields=True):
    """A request.

    Attributes:
        rows: values of each row by column.
        shared: values by column that all rows have.
    """

    rows: list[dict[str, Any]]
    shared: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)


def read_rows(body: bytes, content_type: str) -> RawRows | ArrowRows:
    """Reads a request.

    Args:
        body: body of the HTTP request.
        content_type: its Content-Type: `arrow_rows.MEDIA_TYPE`, or anything else for JSON.

    Raises:
        UserError: it isn't one.
    """
    if content_type.partition(";")[0].strip().lower() == MEDIA_TYPE:
        return ArrowRows(body)
    try:
        return msgspec.json.decode(body, type=RawRows)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f'expected {{"rows": [{{"column": value, …}}, …]}}, and beside it perhaps "shared": '
            f'{{"column": value, …}}: {cut(str(error), 300)}'
        ) from error


def encoded(
    model: ServedModel, given: RawRows | ArrowRows, known_only: bool = False
) -> Rows | None:
    """The rows of a request with ids.

    Args:
        model: model that they are for.
        given: request.
        known_only: whether to give None for values whose ids must be looked for, which
            takes milliseconds.

    Raises:
        UserError: a row is malformed, a column is missing, or the model takes no raw rows.
    """
    if not model.takes_raw_rows:
        raise UserError(
            "the model has no vocabularies, so it can't map raw rows to ids; send ids in the Open "
            "Inference Protocol"
        )
    if isinstance(given, ArrowRows):
        names = model.predictor.encoder.columns
        if missing := [name for name in names if name not in given.names]:
            raise UserError(
                f"rows: there is no column {missing[0]!r}, only "
                f"{cut(', '.join(given.names), 1000) or 'none'}; a missing value is null"
            )
        columns = given.columns(names)
        for name in model.predictor.encoder.options.schema.numbers:
            if columns[name].dtype == pl.Boolean:  # as in JSON and in tensors
                raise UserError(f"column {name}: expected numbers, got booleans; give 1 and 0")
        return rows_of_columns(model, columns, len(given), known_only)
    encoder = model.predictor.row_encoder
    if known_only:
        columns = encoder.columns_of(given.rows, given.shared)
        examples = encoder.columns(columns, len(given.rows), True) if columns else None
    else:
        examples = encoder.rows(given.rows, given.shared)
    if examples is None:
        return None
    return Rows(examples, model.predictor.features_of(given.shared))
