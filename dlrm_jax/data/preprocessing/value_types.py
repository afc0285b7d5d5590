"""Converts values of a new log to the type that the column has in an earlier one."""

from __future__ import annotations

from typing import Any

import polars as pl

from dlrm_jax.errors import UserError


def cast_values(values: pl.Series, known: Any) -> pl.Series:
    """Converts values to the type of a vocabulary; null where a value isn't of this type.

    Whole numbers have another width in another log. They come as floats where some are missing,
    here or in training, or as text from CSV, also as ``"3.0"``. Among them, ``"x"``, ``"007"`` and
    2.5 are no values of an integer column. Python's floats and those of JSON have 64 bits: in a
    column of 32 bits, 0.1 is the nearest one. A column without any value has no type.

    Raises:
        UserError: the column has another type.
    """
    dtype = values.dtype
    if dtype == known or dtype == pl.Null:
        return values.cast(known)
    if known == pl.Null:  # training had no value
        return pl.Series(values.name, [None] * len(values), pl.Null)
    if known.is_integer() and dtype == pl.String:  # pandas writes whole numbers as 3.0
        values = values.str.replace(r"^(-?\d+)\.0+$", "$1")
    if known == pl.Float32 and dtype == pl.Float64:
        cast = values.cast(known)
        is_lost = cast.is_infinite() & values.is_finite()
        return cast.to_frame("x").select(pl.when(~is_lost).then("x"))["x"]
    exact = known.is_float() and (dtype.is_integer() or dtype == pl.Float64)
    if exact or (known.is_integer() and (dtype.is_numeric() or dtype == pl.String)):
        cast = values.cast(known, strict=False)
        same = (cast.cast(dtype, strict=False) == values).fill_null(False)
        return cast.to_frame("x").select(pl.when(same).then("x"))["x"]
    raise UserError(
        f"expected values of type {known}, as in training, got {dtype}; give the column's "
        f"values in that type"
    )


def cast_whole(values: pl.Series, known: Any) -> pl.Series:
    """As `cast_values`, of values that aren't null and none of which may be lost.

    Raises:
        UserError: a value isn't of this type; the message names it.
    """
    try:
        cast = cast_values(values, known)
    except UserError:
        cast = pl.Series([None] * len(values), dtype=known)
    is_lost = cast.is_null()
    if values.dtype == pl.Float64:  # two of 64 bits may be one of 32
        is_lost |= (cast.cast(pl.Float64, strict=False) != values).fill_null(False)
    if is_lost.any():
        lost = values.filter(is_lost)[0]
        raise UserError(
            f"a vocabulary grows by values of its own type, {known}, got {values.dtype} with "
            f"{lost!r}; write the column in the type of the data that grow"
        )
    return cast.alias(values.name)
