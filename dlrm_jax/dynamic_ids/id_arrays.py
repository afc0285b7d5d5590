"""Ids and rows as callers give them, checked: integers of 64 bits or less."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Integer, UInt64

from dlrm_jax.errors import UserError


def integers(name: str, given: Any, hint: str = "") -> Integer[np.ndarray, "..."]:
    """An array of integers, as it was given.

    Args:
        name: name of the array, for messages.
        given: array, or nested lists.
        hint: what else to say of the integers that are expected.

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


def as_keys(ids: Any, name: str = "ids") -> UInt64[np.ndarray, " N"]:
    """Ids as unsigned integers of 64 bits, by their bits.

    Args:
        ids: ids, [N].
        name: name of the array, for messages.

    Raises:
        UserError: see `vector`.
    """
    array = vector(name, ids)
    if array.dtype == np.uint64:
        return np.ascontiguousarray(array)
    return np.ascontiguousarray(array, np.int64).view(np.uint64)
