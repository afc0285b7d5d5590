"""Codes of the groups of examples: by a categorical feature, or by a column of the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.hstacked import HStacked
from dlrm_jax.errors import UserError


def first_places(data: Dataset) -> dict[str, int]:
    """The place of the first id of each categorical feature in a row of ids, by name."""
    starts = np.cumsum([0, *data.bag_lengths[:-1]]).tolist()
    return dict(zip(data.columns, starts, strict=True))


def codes_of(split: Split, column: str, places: Mapping[str, int]) -> Int64[np.ndarray, " N"]:
    """The code of each example's group.

    Args:
        split: examples.
        column: a column of the schema's ``groups``, or a categorical feature, whose first id is
            the code. A negative code is no group.
        places: place of the first id of each feature, see `first_places`.
    """
    if column in split.days[0].groups:
        return split.groups[column]
    place = places[column]
    return np.concatenate([_column(day.arrays["ids"], place) for day in split.days])


def _column(ids: np.ndarray | HStacked, place: int) -> Int64[np.ndarray, " N"]:
    for array in ids.arrays if isinstance(ids, HStacked) else [ids]:
        if place < array.shape[1]:
            return array[:, place].astype(np.int64)
        place -= array.shape[1]
    raise IndexError(place)


def check_column(
    field: str, item: str, column: str, columns: Sequence[str], groups: Sequence[str]
) -> None:
    """Checks that data have a column to group by.

    Args:
        field: field of the config, for messages.
        item: item of the field, for messages.
        column: the column.
        columns: categorical features of the data.
        groups: columns of the schema's ``groups``.

    Raises:
        UserError: they don't.
    """
    if column not in (*columns, *groups):
        raise UserError(
            f"{field}: {item} groups by {column!r}, which is neither a categorical feature "
            f"({', '.join(columns)}) nor one of the schema's groups "
            f"({', '.join(groups) or 'there are none'}); name the column in the schema's "
            f"groups; data that were prepared without it are to be prepared again"
        )
