"""The rows of a request that came as columns, with their ids."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from dlrm_jax.inference.rows import NAME
from dlrm_jax.serving.served_model import Rows, ServedModel


def rows_of_columns(
    model: ServedModel, columns: Mapping[str, pl.Series], count: int, known_only: bool = False
) -> Rows | None:
    """The rows with ids.

    Args:
        model: model with vocabularies that they are for.
        columns: the columns of the schema, [N] each, or [1] for what all rows share.
        count: number of rows N.
        known_only: whether to give None for values whose ids must be looked for, which
            takes milliseconds.

    Raises:
        UserError: a value is malformed, or a column has another type.
    """
    encoder = model.predictor.encoder
    schema, names = encoder.options.schema, encoder.columns
    found = None
    if all(_is_plain(columns[name], name in schema.dense) for name in names):
        lists = {name: columns[name].to_list() for name in names}
        found = model.predictor.row_encoder.columns(lists, count, known_only)
    if found is None and not known_only:
        ordered = (columns[name] for name in names)
        whole = [x if len(x) == count else x.new_from_index(0, count) for x in ordered]
        found = encoder.rows(pl.DataFrame(whole), NAME)
    shared = model.predictor.features_of([x for x in names if len(columns[x]) < count])
    return None if found is None else Rows(found, shared)


def _is_plain(column: pl.Series, is_number: bool) -> bool:
    """Whether Python's values are what the type says: those of other types lose it."""
    kind = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else column.dtype
    if is_number:
        return kind.is_integer() or kind in (pl.Float32, pl.Float64, pl.Null)
    return kind.is_integer() or kind in (pl.String, pl.Null)
