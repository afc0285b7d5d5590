"""Rows of Python values as frames, with one clear error where a row isn't like the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.errors import UserError, cut, shown

NAME = "rows"

_EXACT = 2**53  # integers up to here are floats, too
_TOO_LARGE = 2**127
_DIGITS = 38  # of polars' decimals


def as_frame(rows: Any, columns: Sequence[str], numbers: Sequence[str] = ()) -> pl.DataFrame:
    """Rows as a frame.

    Args:
        rows: a polars frame, something that gives Arrow data (a frame of pandas, a table of
            Arrow), or a list of dicts, one for each row.
        columns: the columns that are read. Each dict must have them; None is a missing value.
        numbers: columns of numbers, which may be rounded to floats; others keep theirs. True and
            False are no numbers in dicts: a column of a frame has a type of its own, they don't.

    Raises:
        UserError: it is none of these, or a row lacks a column, or has a value of another type
            than the rows before or that no column holds beside theirs; the message names row,
            from 0, and column.
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
                f"{NAME} (from 0), row {number}: expected a dict for each row, got {shown(row)}"
            )
        for name in columns:
            if name not in row:
                others = f"only {cut(', '.join(map(str, row)), 1000)}" if row else "nor any other"
                raise UserError(
                    f"{NAME} (from 0), row {number}: it has no column {name!r}, {others}; a "
                    f"missing value is None, null in JSON"
                )
    return frame_of({name: [row[name] for row in rows] for name in columns}, numbers)


def with_shared(rows: Any, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with the values that all of them share.

    Raises:
        UserError: they aren't dicts, or have a column that is shared; the message names it.
    """
    if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(f"{NAME}: expected a list of dicts beside values that all rows share")
    for number, row in enumerate(rows):
        if twice := [name for name in row if name in shared]:
            raise UserError(
                f"{NAME} (from 0), row {number}: column {shown(twice[0])} is among the shared "
                f"ones, too; leave it out of one of them"
            )
    return [{**shared, **row} for row in rows]


def frame_of(columns: Mapping[str, list[Any]], numbers: Sequence[str] = ()) -> pl.DataFrame:
    """Columns of Python values as a frame; see `as_frame`."""
    return pl.DataFrame([_series(name, x, name in numbers) for name, x in columns.items()])


def _series(name: str, values: list[Any], is_number: bool) -> pl.Series:
    _check_flat(name, values)
    values = [_plain(value) for value in values]
    if is_number:
        _check_numbers(name, values)
    kinds = _kinds(name, values)
    if is_number and kinds <= {int, float, Decimal}:
        values = [_mapped(_rounded, value) for value in values]
    elif kinds == {Decimal}:
        _check_decimals(name, values)
    elif kinds and kinds <= {int, float}:
        convert = _exact(name, values)
        values = [_mapped(convert, value) for value in values]
    found = _typed(name, values)
    if isinstance(found, pl.Series):
        return found
    for row, value in enumerate(values):
        if isinstance(failure := _typed(name, [value]), Exception):
            reason = cut(str(failure).splitlines()[0], 300)
            raise UserError(f"{NAME} (from 0), row {row}, column {name}: {reason}") from failure
    raise UserError(f"{NAME}, column {name}: {cut(str(found).splitlines()[0], 300)}") from found


def _typed(name: str, values: list[Any]) -> pl.Series | Exception:
    """The values as a series, or why there is no type for them."""
    failure: Exception | None = None
    # Ids may have 64 bits, with a sign or without, or both.
    for dtype in (None, pl.UInt64, pl.List(pl.UInt64), pl.Int128, pl.List(pl.Int128)):
        try:
            found = pl.Series(name, values, dtype)
            if found.dtype == pl.Object:
                raise TypeError(f"expected plain values, got {shown(values[0])}")
            return found
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            failure = failure or error
    assert failure is not None
    return failure


def _check_numbers(name: str, values: Sequence[Any]) -> None:
    for row, value in enumerate(values):
        if isinstance(value, bool):
            raise UserError(
                f"{NAME} (from 0), row {row}, column {name}: expected a number or None, got "
                f"{value}; give 1 or 0 for a column of booleans"
            )


def _check_flat(name: str, values: Sequence[Any]) -> None:
    """Checks that values are plain, or lists of such: polars takes seconds for deeper ones."""
    for row, value in enumerate(values):
        inner = value if isinstance(value, list | tuple) else ()
        if isinstance(value, Mapping) or any(isinstance(x, list | tuple | Mapping) for x in inner):
            raise UserError(
                f"{NAME} (from 0), row {row}, column {name}: expected a value or a list of values, "
                f"got {shown(value)}"
            )


def _plain(value: Any) -> Any:
    """Values of NumPy as Python's, arrays and tuples as lists; NaN is a missing value."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Decimal):
        return None if value.is_nan() else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _present(values: Sequence[Any]) -> Iterator[tuple[int, bool, Any]]:
    """The values that aren't missing, with their rows and whether they are in a list."""
    for row, value in enumerate(values):
        if value is not None:
            yield row, False, value
        for each in value if isinstance(value, list) else ():
            if each is not None:
                yield row, True, each


def _kinds(name: str, values: Sequence[Any]) -> set[type]:
    """The types of a column's values, lists and their values included, which must be alike."""
    first: dict[bool, tuple[int, Any]] = {}  # of the values, and of those in lists
    kinds = set()
    for number, is_inner, each in _present(values):
        row, other = first.setdefault(is_inner, (number, each))
        kinds.add(type(each))
        if type(each) is not type(other) and {type(each), type(other)} != {int, float}:
            raise UserError(
                f"{NAME} (from 0), row {number}, column {name}: expected the type "
                f"{type(other).__name__} as in row {row}, got {shown(each)} of type "
                f"{type(each).__name__}"
            )
    return kinds - {list}


def _mapped(convert: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list):
        return [_mapped(convert, each) for each in value]
    return None if value is None else convert(value)


def _rounded(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _exact(name: str, values: Sequence[Any]) -> Callable[[Any], Any]:
    """The type of a column's integers and floats that changes none of them."""
    numbers = [(row, each) for row, _, each in _present(values) if not isinstance(each, list)]
    floats = [(row, each) for row, each in numbers if isinstance(each, float)]
    large = [(row, each) for row, each in numbers if type(each) is int and abs(each) > _EXACT]
    for row, each in large:
        if not -_TOO_LARGE <= each < _TOO_LARGE:
            raise UserError(
                f"{NAME} (from 0), row {row}, column {name}: expected an integer of 128 bits at "
                f"most, got {shown(each)}"
            )
    if not large:
        return float if floats else int
    for row, each in floats:
        if not each.is_integer() or abs(each) >= _TOO_LARGE:
            other, integer = large[0]
            raise UserError(
                f"{NAME} (from 0), row {row}, column {name}: expected whole numbers, as row "
                f"{other} has {integer}, which a float can't hold, got {shown(each)}"
            )
    return int


def _check_decimals(name: str, values: Sequence[Any]) -> None:
    """Checks that a column's decimals fit into one type: others would be lost."""
    before = after = 0
    for row, _, each in _present(values):
        if isinstance(each, list):
            continue
        if each.is_finite():
            before = max(before, each.adjusted() + 1)
            after = max(after, -int(each.as_tuple().exponent))
        if not each.is_finite() or before + after > _DIGITS:
            raise UserError(
                f"{NAME} (from 0), row {row}, column {name}: expected decimals of {_DIGITS} digits "
                f"at most, before and behind the point of all rows together, got {shown(each)}"
            )
