"""Rows of Parquet and CSV files, checked against a schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError


def check_columns(path: Path, schema: Schema, found: Mapping[str, Any]) -> None:
    """Checks names and types.

    Raises:
        UserError: naming the column.
    """
    missing = [name for name in schema.columns if name not in found]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r} that the schema names; its columns are "
            f"{', '.join(found)}"
        )
    for name in schema.categorical:
        kind = found[name]
        is_list = isinstance(kind, pl.List | pl.Array)
        if is_list and isinstance(kind.inner, pl.List | pl.Array):
            raise UserError(f"{path}, column {name}: expected a list of values, got {kind}")
        if name in schema.bag_lengths and not is_list:
            raise UserError(
                f"{path}, column {name}: the schema gives a bag length, expected lists, got {kind}"
            )
        if is_list and name not in schema.bag_lengths:
            raise UserError(
                f"{path}, column {name} holds lists: the schema's bag_lengths must say "
                f"how many values of each are kept"
            )


def checked(path: Path, schema: Schema, batch: pl.DataFrame, first_row: int) -> pl.DataFrame:
    """A batch with its numbers as Float64, none of them bad; NaN counts as missing.

    Raises:
        UserError: naming row and column.
    """

    def numbers(name: str, expected: str, accepts: Callable[[pl.Expr], pl.Expr]) -> pl.Series:
        text = pl.col(name)
        if batch[name].dtype == pl.Boolean or batch[name].dtype == pl.String:
            lower = text.cast(pl.String).str.to_lowercase()
            text = lower.replace({"true": "1", "false": "0"})
        found = batch.select(text.cast(pl.Float64, strict=False).fill_nan(None).alias("x"))
        wrong = batch[name].is_not_null() & found["x"].is_null()
        if batch[name].dtype.is_float():
            wrong &= batch[name].is_not_nan()
        wrong |= ~found.select(accepts(pl.col("x")).fill_null(False))["x"]
        if wrong.any():
            row = wrong.arg_max() or 0
            raise UserError(
                f"{path}, row {first_row + row}, column {name}: expected {expected}, got "
                f"{batch[name][row]!r}"
            )
        return found["x"].alias(name)

    largest = float(np.finfo(np.float32).max)
    checked = [numbers(schema.label, "0 or 1", lambda x: x.is_in([0.0, 1.0]))]
    for name in schema.dense:
        finite = "a finite number or nothing"
        checked.append(numbers(name, finite, lambda x: x.is_null() | (x.abs() <= largest)))
    if schema.weight:
        least = "a number of at least 0"
        checked.append(numbers(schema.weight, least, lambda x: x.is_between(0, largest)))
    return batch.with_columns(checked)
