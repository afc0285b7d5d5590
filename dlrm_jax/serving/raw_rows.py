"""Raw rows as JSON: all values of each row, or those that all rows share once."""

from __future__ import annotations

from typing import Any

import msgspec

from dlrm_jax.errors import UserError, cut
from dlrm_jax.serving.served_model import Rows, ServedModel


class RawRows(msgspec.Struct, forbid_unknown_fields=True):
    """A request.

    Attributes:
        rows: values of each row by column.
        shared: values by column that all rows have.
    """

    rows: list[dict[str, Any]]
    shared: dict[str, Any] = {}


def read_rows(body: bytes) -> RawRows:
    """Reads a request.

    Raises:
        UserError: it isn't one.
    """
    try:
        return msgspec.json.decode(body, type=RawRows)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f'expected {{"rows": [{{"column": value, …}}, …]}}, and beside it perhaps "shared": '
            f'{{"column": value, …}}: {cut(str(error), 300)}'
        ) from error


def encoded(model: ServedModel, given: RawRows, known_only: bool = False) -> Rows | None:
    """The rows of a request with ids.

    Args:
        model: model that they are for.
        given: request.
        known_only: whether to give None for values whose ids must be looked for, which
            takes milliseconds.

    Raises:
        UserError: a row is malformed, or the model has no vocabularies.
    """
    if not model.takes_raw_rows:
        raise UserError(
            "the model has no vocabularies, so it can't map raw rows to ids; send ids in the Open "
            "Inference Protocol"
        )
    encoder = model.predictor.row_encoder
    if known_only:
        columns = encoder.columns_of(given.rows, given.shared)
        examples = encoder.columns(columns, len(given.rows), True) if columns else None
    else:
        examples = encoder.rows(given.rows, given.shared)
    if examples is None:
        return None
    return Rows(examples, model.predictor.features_of(given.shared))
