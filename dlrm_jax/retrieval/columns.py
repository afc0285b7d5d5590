"""The columns of the two towers: which are the user's, which the item's, and where they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from dlrm_jax.data.arrays import Dataset, Examples
from dlrm_jax.data.metadata import METADATA, Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import listed


@dataclasses.dataclass(frozen=True)
class Side:
    """The columns of one tower.

    Attributes:
        features: categorical columns, as indices of those of the data.
        dense: dense columns, as indices of those of the data.
        places: places of the categorical columns in the data's id array.
        key: place, within ``places``, of the column that tells one user or item from another;
            None without one.
        key_feature: index of that column.
    """

    features: tuple[int, ...]
    dense: tuple[int, ...]
    places: Int32[np.ndarray, " C"]
    key: int | None
    key_feature: int | None

    def ids(self, examples: Examples) -> Int32[np.ndarray, "n C"]:
        """The ids of this side."""
        return np.asarray(examples.ids)[:, self.places]

    def dense_of(self, examples: Examples) -> Float32[np.ndarray, "n D"]:
        """The dense features of this side."""
        return np.asarray(examples.dense)[:, list(self.dense)]

    def keys(self, ids: Int32[np.ndarray, "n C"]) -> Int32[np.ndarray, " n"]:
        """The key of each example, from the result of `ids`."""
        assert self.key is not None
        return ids[:, self.key]


def dense_names(directory: Path | None, count: int) -> tuple[str, ...]:
    """The names of the dense columns; I1, I2, … as Criteo's where the data have none."""
    if directory and (directory / METADATA).exists():
        names = Options.from_json(Metadata.read(directory).made_from["options"]).schema.dense
        if len(names) == count:
            return tuple(names)
    return tuple(f"I{i + 1}" for i in range(count))


def find_sides(
    data: Dataset,
    dense: Sequence[str],
    user_columns: Sequence[str],
    item_columns: Sequence[str],
    user_id: str,
    item_id: str,
) -> tuple[Side, Side]:
    """The sides of the user and of the item.

    Args:
        data: data set with the columns.
        dense: names of its dense columns.
        user_columns: names of the user's columns, categorical or dense.
        item_columns: names of the item's.
        user_id: user column that tells users apart; empty for the first one with a single id, if
            there is one.
        item_id: item column that tells items apart; empty for the first item column.

    Raises:
        UserError: a column isn't there, is named twice, or can't tell users or items apart.
    """
    for flag, names in (("user_columns", user_columns), ("item_columns", item_columns)):
        if not names:
            raise UserError(f"{flag}: expected at least one column, got none")
        for name in names:
            if name not in data.columns and name not in dense:
                raise UserError(
                    f"{flag}: the data have no column {name!r}; there are {listed(data.columns)}, "
                    f"and dense {listed(dense) or 'none'}"
                )
            if list(names).count(name) > 1:
                raise UserError(f"{flag}: {name!r} is there twice; leave one out")
    if both := [name for name in user_columns if name in item_columns]:
        raise UserError(
            f"item_columns: {both[0]!r} is one of user_columns, too; a column belongs to one tower"
        )
    for flag, name, names in (
        ("user_id", user_id, user_columns),
        ("item_id", item_id, item_columns),
    ):
        if name and name not in names:
            raise UserError(f"{flag}: expected one of {listed(names)}, got {name!r}")
    single = [name for name in user_columns if _is_single(data, name)]
    user_key = user_id or (single[0] if single else "")
    item_key = item_id or item_columns[0]
    for flag, key in (("user_id", user_key), ("item_id", item_key)):
        if key and not _is_single(data, key):
            raise UserError(
                f"{flag}: expected a categorical column with one id in each row, got {key!r}"
            )
    return (
        _side(data, dense, user_columns, user_key),
        _side(data, dense, item_columns, item_key),
    )


def _is_single(data: Dataset, name: str) -> bool:
    return name in data.columns and data.bag_lengths[data.columns.index(name)] == 1


def _side(data: Dataset, dense: Sequence[str], names: Sequence[str], key: str) -> Side:
    starts = np.cumsum([0, *data.bag_lengths])
    features = tuple(data.columns.index(name) for name in names if name in data.columns)
    places = [np.arange(starts[i], starts[i + 1]) for i in features]
    joined = np.concatenate(places) if places else np.empty(0)
    feature = data.columns.index(key) if key else None
    at = None if feature is None else joined.tolist().index(starts[feature])
    numbers = tuple(dense.index(name) for name in names if name not in data.columns)
    return Side(features, numbers, joined.astype(np.int32), at, feature)
