"""Frames that come one after the other: the columns of the later ones as in the first."""

from __future__ import annotations

from typing import Any

import polars as pl

from dlrm_jax.errors import UserError


def as_before(frame: pl.DataFrame, before: pl.DataFrame, what: str) -> pl.DataFrame:
    """The columns of an earlier frame, in its order and types; further ones are left out.

    Args:
        frame: frame that has come.
        before: frame whose columns it gets.
        what: name of the frames in messages, such as "rows".

    Raises:
        UserError: a column is missing, or its values can't be in the earlier type as they are.
    """
    columns = []
    for name, dtype in before.schema.items():
        if name not in frame.columns:
            raise UserError(
                f"{what} have no column {name!r}, and those before had one; their columns are "
                f"{', '.join(frame.columns)}"
            )
        column = cast_exactly(frame[name], dtype)
        if column is None:
            raise UserError(
                f"{what}: column {name!r} is {frame[name].dtype}, and was {dtype} before, which "
                f"can't have the same values; write it in one type"
            )
        columns.append(column)
    return pl.DataFrame(columns)


def cast_exactly(values: pl.Series, dtype: Any) -> pl.Series | None:
    """The same values in another type.

    Returns:
        None if one of them isn't in the type, or the type is of another kind: numbers aren't text.
    """
    if values.dtype == dtype:
        return values
    if values.null_count() == len(values):
        return pl.Series(values.name, [None] * len(values), dtype)
    if _kind(values.dtype) != _kind(dtype):
        return None
    found = values.cast(dtype, strict=False)
    same = found.cast(values.dtype, strict=False).eq_missing(values)
    return found if same.all() else None


def _kind(dtype: Any) -> Any:
    """What types have in common whose values may be the same."""
    if isinstance(dtype, pl.List | pl.Array):
        return "list", _kind(dtype.inner)
    if isinstance(dtype, pl.Datetime):
        return "time", dtype.time_zone
    if isinstance(dtype, pl.Date):
        return "time", None
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    return "number" if dtype.is_numeric() else dtype
