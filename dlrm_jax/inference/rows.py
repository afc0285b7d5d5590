"""Rows of Python values as frames, with one clear error where a row isn't like the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.errors import UserError

NAME = "rows"


def as_frame(rows: Any, columns: Sequence[str]) -> pl.DataFrame:
    """Rows as a frame.

    Args:
        rows: a polars frame, something that gives Arrow data (a frame of pandas, a table of
            Arrow), or a list of dicts, one for each row.
        columns: the columns that are read. Each dict must have them; None is a missing value.

    Raises:
        UserError: it is none of these, or a row lacks a column or has a value of another type
            than the rows before; the message names row, from 0, and column.
    """
    if isinstance(rows, pl.DataFrame):
        return rows
    if hasattr(rows, "__arrow_c_stream__"):
        try:
            return pl.DataFrame(rows)
        except (ImportError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise UserError(
                f"{NAME}: a {type(rows).__name__} gives no Arrow data: {error}; give a polars "
                f"frame or a list of dicts, such as to_dict('records') of pandas"
            ) from error
    if not isinstance(rows, list | tuple):
        hint = "; put a dict of one row into a list" if isinstance(rows, Mapping) else ""
        raise UserError(
            f"{NAME}: expected a list of dicts, a frame, the path of a file, or Examples, got "
            f"{type(rows).__name__}{hint}"
        )
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(
                f"{NAME} (from 0), row {number}: expected a dict for each row, got {row!r}"
            )
        for name in columns:
            if name not in row:
                raise UserError(
                    f"{NAME} (from 0), row {number}: it has no column {name!r}, only "
                    f"{', '.join(map(str, row)) or 'none'}; None is a missing value"
                )
    return pl.DataFrame([_series(name, [row[name] for row in rows]) for name in columns])


def _series(name: str, values: list[Any]) -> pl.Series:
    values = [_plain(value) for value in values]
    if _kinds(name, values) == {int, float}:
        values = [_as_float(value) for value in values]
    failure: Exception | None = None
    for dtype in (None, pl.UInt64, pl.List(pl.UInt64)):  # ids may have 64 bits
        try:
            found = pl.Series(name, values, dtype)
            if found.dtype == pl.Object:
                raise TypeError(f"expected plain values, got {values[0]!r}")
            return found
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            failure = failure or error
    raise UserError(f"{NAME}, column {name}: {str(failure).splitlines()[0]}") from failure


def _plain(value: Any) -> Any:
    """Values of NumPy as Python's, arrays and tuples as lists; NaN is a missing value."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _as_float(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_float(each) for each in value]
    return None if value is None else float(value)


def _kinds(name: str, values: Sequence[Any]) -> set[type]:
    """The types of a column's values, lists and their values included, which must be alike."""
    first: dict[bool, tuple[int, Any]] = {}  # of the values, and of those in lists
    kinds = set()
    for number, value in enumerate(values):
        inner = value if isinstance(value, list) else ()
        for is_inner, each in ((False, value), *((True, x) for x in inner)):
            if each is None:
                continue
            row, other = first.setdefault(is_inner, (number, each))
            kinds.add(type(each))
            if type(each) is not type(other) and {type(each), type(other)} != {int, float}:
                raise UserError(
                    f"{NAME} (from 0), row {number}, column {name}: expected the type "
                    f"{type(other).__name__} as in row {row}, got {each!r} of type "
                    f"{type(each).__name__}"
                )
    return kinds - {list}
