"""Values that come from outside as a series, if they are single ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

_CONTAINERS = (list, tuple, set, frozenset, Mapping, np.ndarray, pl.Series)


def as_series(values: Any) -> pl.Series | None:
    """Values as a series; None if they have no type that all share, or aren't single ones.

    Args:
        values: list, array or series, which comes from a client.
    """
    # Polars takes a time for lists in lists that is cubic in their depth: 20 s for 400.
    is_list = isinstance(values, list | tuple)
    if is_list and any(issubclass(kind, _CONTAINERS) for kind in {*map(type, values)}):
        return None
    if values is None or isinstance(values, str | bytes | Mapping):  # polars takes letters, keys
        return None
    try:
        if is_list and {*map(type, values)} == {int, float}:  # JavaScript writes 1.0 as 1
            if max(map(abs, values)) > 2**53:  # a float may be another integer
                return None
            values = [float(x) for x in values]
        found = pl.Series(values=values)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return None
    return None if found.dtype.is_nested() or found.dtype == pl.Object else found
