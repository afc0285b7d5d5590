"""Checks rows of Parquet and CSV files against a schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.data.formats.lines import OnBadLine
from dlrm_jax.data.preprocessing import few_rows
from dlrm_jax.data.preprocessing.hashed_values import WITHOUT_TEXT
from dlrm_jax.data.preprocessing.log_labels import label_or_null, label_rules, numbers_of
from dlrm_jax.data.preprocessing.log_times import SECONDS, as_times
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError, shown

_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


def check_columns(
    path: Path | str,
    schema: Schema,
    types: Mapping[str, Any],
    without_label: bool = False,
    rows: pl.DataFrame | None = None,
) -> None:
    """Checks names and types of columns.

    Args:
        path: file, or a name of rows in memory.
        schema: schema.
        types: type of each column that is there.
        without_label: whether they are rows to predict.
        rows: rows in memory, for messages.

    Raises:
        UserError: a column is missing or has the wrong type; the message names it, and the first
            of the rows in memory that has a value.
    """

    def place(name: str) -> str:
        return f"{path}, column {name}" if rows is None else first_place(path, rows[name])

    names = schema.unlabelled_columns if without_label else schema.columns
    missing = [name for name in names if name not in types]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r} that the schema names; its columns are "
            f"{', '.join(types)}"
        )
    if not without_label:
        _check_groups(path, schema, types)
    of_numbers = (*schema.labels, *schema.dense, *schema.bins, schema.weight)
    numbers = [name for name in names if name in of_numbers]
    for name in numbers:
        if not (types[name].is_numeric() or types[name] in (pl.Boolean, pl.String, pl.Null)):
            raise UserError(f"{place(name)}: expected numbers, got {types[name]}")
    for name in schema.label_at_least:
        if types.get(name) == pl.Boolean:
            raise UserError(
                f"{path}, column {name}: expected numbers, as the schema has label_at_least, got "
                f"booleans; leave it out"
            )
    if schema.timestamp:
        kind = types[schema.timestamp]
        if not (kind.is_numeric() or kind in (pl.Date, pl.Datetime, pl.String)):
            raise UserError(
                f"{path}, column {schema.timestamp}: expected dates, times or seconds since 1970, "
                f"got {kind}"
            )
    in_memory = rows is not None
    for name in schema.categorical:
        kind = types[name]
        is_list = isinstance(kind, pl.List | pl.Array)
        if is_list and isinstance(kind.inner, pl.List | pl.Array):
            raise UserError(f"{place(name)}: expected a list of values, got {kind}")
        if name in schema.bag_lengths and not is_list and kind != pl.Null:
            expected = (
                f"expected a list in each row, as in training, got {kind}; give a value alone as a "
                f"list of one"
                if in_memory
                else f"expected lists, as the schema gives a bag length, got {kind}; CSV has no "
                f"lists: write the log as Parquet with a list column"
            )
            raise UserError(f"{place(name)}: {expected}")
        if is_list and name not in schema.bag_lengths:
            hint = (
                "expected one value in each row, as in training"
                if in_memory
                else "the schema's bag_lengths must say how many values of each are kept"
            )
            raise UserError(f"{place(name)} holds lists: {hint}")

    if not without_label:  # new logs are converted to the vocabulary's type, column by column
        _check_shared(path, schema, types)


def first_place(name: str | Path, values: pl.Series) -> str:
    """The first row, from 0, that has a value in a column of a wrong type, for messages."""
    present = values.is_not_null()
    if isinstance(values.dtype, pl.List):
        present &= values.list.drop_nulls().list.len() > 0
    row = present.arg_max() or 0
    return f"{name}, row {row}, column {values.name}"


def _check_groups(path: Path | str, schema: Schema, types: Mapping[str, Any]) -> None:
    for name in schema.groups:
        if name not in types:
            raise UserError(
                f"{path} has no column {name!r} that the schema's groups name; its columns are "
                f"{', '.join(types)}"
            )
        if isinstance(types[name], WITHOUT_TEXT):
            raise UserError(
                f"{path}, column {name}: groups need one number, text or date a row, got "
                f"{types[name]}"
            )


def _check_shared(path: Path | str, schema: Schema, types: Mapping[str, Any]) -> None:
    for name, owner in schema.shared.items():
        if not same_values(types[name], types[owner]):
            raise UserError(
                f"{path}: column {name} is {types[name]}, but {owner}, whose vocabulary it shares, "
                f"is {types[owner]}; write the values of both in one type"
            )


def same_values(first: Any, second: Any) -> bool:
    """Whether the values of two columns, or of their lists, may be the same.

    Integers may have several widths, and a column without values has no type.
    """
    kinds = [x.inner if isinstance(x, pl.List | pl.Array) else x for x in (first, second)]
    kinds = [pl.String() if x in (pl.Categorical, pl.Enum) else x for x in kinds]
    one, other = kinds
    return one == other or pl.Null in kinds or (one.is_integer() and other.is_integer())


def valid_rows(
    path: Path | str,
    schema: Schema,
    batch: pl.DataFrame,
    first_row: int,
    on_bad_line: OnBadLine = "stop",
    seconds: bool | None = None,
) -> pl.DataFrame:
    """The good rows of a batch: numbers as Float64, times in microseconds; NaN becomes missing.

    The first row's number counts from 1. Times in a column of text are numbers if ``seconds`` is
    true, see `has_seconds`.

    Raises:
        UserError: a value is malformed; the message names row and column.
    """
    rules: list[tuple[str, str, Callable[[pl.Expr], pl.Expr]]] = [
        *label_rules(schema, batch.schema),
        *(
            (
                name,
                "a finite number of float32 or nothing",
                lambda x: x.is_null() | (x.abs() <= _LARGEST),
            )
            for name in (*schema.dense, *schema.bins)
        ),
    ]
    if schema.weight:
        # A smaller one would become 0, and its row would count for nothing.
        weight = "0 or a number of float32, from 1.2e-38 on"
        rules.append(
            (schema.weight, weight, lambda x: (x == 0) | x.is_between(_SMALLEST, _LARGEST))
        )
    # All columns at once: an operation of its own for each is slow for a single row.
    exprs: list[pl.Expr] = []
    for i, (name, _, accepts) in enumerate(rules):
        column, values = pl.col(name), numbers_of(name, batch.schema[name], schema)
        lost = column.is_not_null() & values.is_null()
        if batch.schema[name].is_float():
            lost &= column.is_not_nan()
        exprs += [
            values.alias(f"{i}"),
            (lost | ~accepts(values).fill_null(False)).alias(f"bad {i}"),
        ]
    found = few_rows.select(batch, exprs)
    checked = [
        (found[f"{i}"].alias(name), found[f"bad {i}"], expected)
        for i, (name, expected, _) in enumerate(rules)
    ]
    if schema.timestamp:
        expected = f"a date, a time, or {SECONDS}"
        if batch[schema.timestamp].dtype == pl.String:
            numbers = f"{SECONDS}, as most of the first times of the file"
            expected = numbers if seconds else "a date or a time such as 2026-11-25 10:30"
        times = as_times(batch[schema.timestamp], bool(seconds))
        checked.append((times, times.is_null(), expected))
    bad = pl.repeat(False, len(batch), eager=True)
    for values, wrong, expected in checked:
        if on_bad_line == "stop" and wrong.any():
            row = wrong.arg_max() or 0
            raise UserError(
                f"{path}, row {first_row + row}, column {values.name}: expected {expected}, got "
                f"{_shown(batch[values.name], row)}"
            )
        bad |= wrong
    rows = few_rows.with_columns(batch, [values for values, _, _ in checked])
    return rows.filter(~bad) if bad.any() else rows


def _shown(column: pl.Series, row: int) -> str:
    """A malformed value, for messages."""
    kind = column.dtype
    value = column.to_physical()[row] if kind.is_temporal() else column[row]
    if value is None:
        return "no value (an empty field, NA, NaN, nan or null)"
    # Python has no such time.
    return f"{value} as {kind}, not in the years 1 to 9999" if kind.is_temporal() else shown(value)


def unlabelled_rows(
    path: Path | str, schema: Schema, batch: pl.DataFrame, first_row: int
) -> pl.DataFrame:
    """As `valid_rows` of rows without weights and times, each of which gets a prediction.

    A label that is neither 0 nor 1 (or no number, with a threshold) is null, and its column may be
    missing.
    """
    labels = [label_or_null(name, schema, batch) for name in schema.labels]
    if not (schema.dense or schema.bins or schema.weight or schema.timestamp):
        return few_rows.with_columns(batch, labels)  # nothing else may be malformed
    rows = few_rows.with_columns(batch, [pl.lit(0).alias(name) for name in schema.labels])
    return few_rows.with_columns(valid_rows(path, schema, rows, first_row), labels)
