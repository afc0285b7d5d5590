"""Labels of a log's rows, and other columns of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from dlrm_jax.data.preprocessing.label_threshold import labels_from
from dlrm_jax.data.preprocessing.schema import Schema

Rule = tuple[str, str, Callable[[pl.Expr], pl.Expr]]
"""A column, what is expected of its values, and an expression of which of them are."""


def label_rules(schema: Schema, types: Mapping[str, Any]) -> list[Rule]:
    """What each label must be. Of several a row may lack some, but not all."""
    known = {
        name: "a finite number" if name in schema.label_at_least else "0 or 1"
        for name in schema.labels
    }
    if len(known) == 1:
        return [(name, text, lambda x: x.is_in([0.0, 1.0])) for name, text in known.items()]
    numbers = [numbers_of(name, types[name], schema) for name in known]
    some = pl.any_horizontal(x.is_not_null() for x in numbers)
    first, *others = known
    expected = f"{known[first]}, or nothing if there is a label in {' or '.join(others)}"

    def optional(x: pl.Expr) -> pl.Expr:
        return x.is_null() | x.is_in([0.0, 1.0])

    return [
        (first, expected, lambda x: optional(x) & some),
        *((name, known[name].replace(" or ", ", ") + " or nothing", optional) for name in others),
    ]


def label_or_null(name: str, schema: Schema, batch: pl.DataFrame) -> pl.Series:
    """A label of rows, null where it is none; its column may be missing."""
    if name in batch.columns:
        given = batch[name]
        if given.dtype.is_numeric() or given.dtype in (pl.Boolean, pl.String):
            found = batch.select(x=numbers_of(name, given.dtype, schema))
            kept = found.select(pl.when(pl.col("x").is_in([0.0, 1.0])).then("x"))["x"]
            return kept.alias(name)
    return pl.Series(name, [None] * len(batch), pl.Float64)


def numbers_of(name: str, kind: Any, schema: Schema) -> pl.Expr:
    """A column of a type as Float64, a label as 0 or 1; null where a value isn't a number."""
    column = pl.col(name)
    if name in schema.label_at_least:
        return labels_from(column.cast(pl.Float64, strict=False), schema.label_at_least[name])
    if kind in (pl.Boolean, pl.String):
        lower = column.cast(pl.String).str.to_lowercase()
        column = lower.replace({"true": "1", "false": "0"})
    return column.cast(pl.Float64, strict=False).fill_nan(None)
