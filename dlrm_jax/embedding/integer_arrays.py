"""Arrays of integers as callers give them, such as ids and rows, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Integer

from dlrm_jax.errors import UserError


def integers(name: str, given: Any, hint: str = "") -> Integer[np.ndarray, "..."]:
    """An array of integers, as it was given.

    Args:
        name: name of the array, for messages.
        given: array, or nested lists.
        hint: more words on the integers that are expected.

    Raises:
        UserError: it is no array of integers, such as of floats, strings or ragged lists.
    """
    try:
        array = given if isinstance(given, np.ndarray) else np.asarray(given)
    except ValueError as error:  # lists of several lengths
        raise UserError(f"{name}: expected an array of integers{hint}, got {error}") from None
    if isinstance(given, np.ma.MaskedArray) or array.dtype.kind not in "iu":
        kind = "a masked array" if isinstance(given, np.ma.MaskedArray) else array.dtype
        raise UserError(f"{name}: expected an array of integers{hint}, got {kind}")
    return array


def vector(name: str, given: Any) -> Integer[np.ndarray, " N"]:
    """An array of integers with one axis.

    Args:
        name: name of the array, for messages.
        given: array or list, [N].

    Raises:
        UserError: it is no array of integers, or has another number of axes.
    """
    array = integers(name, given)
    if array.ndim != 1:
        raise UserError(f"{name}: expected integers of shape [N], got {list(array.shape)}")
    return array


def row_numbers(table: str, given: Any, rows: int) -> Integer[np.ndarray, " n"]:
    """Numbers of rows of a table.

    Args:
        table: name of the table, for messages.
        given: array or list, [n].
        rows: number of rows of the table.

    Raises:
        UserError: see `vector`; or a number is out of range.
    """
    numbers = vector(f"rows of table {table}", given)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < rows:
        raise UserError(
            f"rows: expected numbers from 0 to {rows - 1} of table {table}, got {numbers.min()} to "
            f"{numbers.max()}"
        )
    return numbers
