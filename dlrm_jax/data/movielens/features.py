"""Maps the properties of users and items to ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Int32, Int64

from dlrm_jax.data.movielens.formats import Tables
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.errors import UserError

# The lowest age of each group that 1M has, where it stands for all ages of the group.
_AGE_GROUPS = (18, 25, 35, 45, 50, 56)

USER_FEATURES = {
    "user": pl.col("user"),
    "gender": pl.col("gender"),
    "age": pl.col("age"),
    "age_group": sum((pl.col("age") >= lowest).cast(pl.Int64) for lowest in _AGE_GROUPS),
    "occupation": pl.col("occupation"),
    "zip": pl.col("zip").str.head(3),  # in the United States a region, not a post office
}
"""Expressions of the user features, by name."""

ITEM_FEATURES = {"item": pl.col("item"), "year": pl.col("year"), "genres": pl.col("genres")}
"""Expressions of the item features, by name."""

DEFAULT = ("user", "gender", "age_group", "occupation", "zip", "item", "year", "genres")
"""Names of the default features; those that the data set lacks are left out."""


@dataclass(frozen=True)
class Features:
    """The features of all users, or of all items, as ids.

    Attributes:
        names: names of the features.
        rows: rows of each feature's table.
        lengths: bag length of each feature.
        ids: ids of user or item i in row i, with all features side by side.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    ids: Int32[np.ndarray, "n C"]


def select_features(tables: Tables, features: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the features to make, those of users first.

    They are the wanted ones; without, as many of `DEFAULT` as the data set has.

    Raises:
        UserError: the data set doesn't have a wanted feature.
    """
    columns = {*tables.users.columns, *tables.items.columns}
    has = [
        name
        for name, value in {**USER_FEATURES, **ITEM_FEATURES}.items()
        if columns.issuperset(value.meta.root_names())
    ]
    wanted = DEFAULT if features is None else features
    unknown = [] if features is None else [name for name in features if name not in has]
    if unknown or not wanted:
        raise UserError(
            f"{tables.files[0].parent}: expected some of the features {', '.join(has)}, which are "
            f"all that the data set has, got {', '.join(unknown) or 'none'}"
        )
    return tuple(name for name in has if name in wanted)


def encode(
    described: pl.DataFrame,
    values: Mapping[str, pl.Expr],
    names: Sequence[str],
    trained: Int64[np.ndarray, " n"],
) -> Features:
    """Learns a vocabulary for each feature, see `vocabulary.learn`, and makes ids.

    Names that aren't among the values, `USER_FEATURES` or `ITEM_FEATURES`, are ignored.
    ``trained`` is the row of the user or item of each training example; values of no such example
    get the id of unseen values.
    """
    present = [name for name in names if name in values]
    rows, bags = [], [np.empty((len(described), 0), np.int32)]
    for name in present:
        column = described.select(values[name].alias("value")).to_series()
        learned = vocabulary.learn([column.gather(trained).to_frame().lazy()])
        rows.append(vocabulary.rows_needed(learned.lazy()))
        bags.append(vocabulary.encode(column, learned, _longest(column)))
    lengths = tuple(bag.shape[1] for bag in bags[1:])
    return Features(tuple(present), tuple(rows), lengths, np.concatenate(bags, axis=1))


def _longest(column: pl.Series) -> int:
    """The bag length that a column needs."""
    if column.dtype != pl.List:
        return 1
    return int(column.list.len().fill_null(0).to_numpy().max(initial=1))
