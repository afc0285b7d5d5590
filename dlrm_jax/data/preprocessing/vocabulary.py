"""From the values of a categorical column to rows of its table.

A vocabulary is a frame with the columns ``value``, ``count`` (in the training part) and ``id``,
by ascending id, kept as Parquet beside the arrays.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Int32

from dlrm_jax.data.arrays import ABSENT

UNSEEN = 0
"""The id of values that aren't in the vocabulary, rare ones included."""
MISSING = 1
"""The id of missing values."""
FIRST_VALUE = 2
"""The id of the most frequent value."""

_SHARED_PART = 8


def learn(values: pl.LazyFrame, min_count: int = 1, max_rows: int = 0) -> pl.DataFrame:
    """The vocabulary of a column ``value``: frequent values get small ids.

    Equally frequent ones are ordered by value. Memory grows with the distinct values only.

    Args:
        values: of the training part, as often as they occur; nulls and lists allowed.
        min_count: rarer values are left out, and so share the row `UNSEEN`.
        max_rows: rows that the table may have at most, 0 for no limit. The most frequent
            values get rows of their own, all others share the last eighth of the rows.
    """
    if isinstance(values.collect_schema()["value"], pl.List):
        values = values.explode("value")
    counts = values.drop_nulls().group_by("value").agg(pl.len().alias("count"))
    kept = counts.filter(pl.col("count") >= min_count).collect(engine="streaming")
    kept = kept.sort(["count", "value"], descending=[True, False])
    ids = np.arange(FIRST_VALUE, FIRST_VALUE + len(kept), dtype=np.int64)
    if max_rows and FIRST_VALUE + len(kept) > max_rows:
        shared = max(1, max_rows // _SHARED_PART)
        first = max_rows - shared
        ids = np.where(ids < first, ids, first + (ids - first) % shared)
    return kept.with_columns(pl.Series("id", ids.astype(np.int32)))


def learn_in_order(values: pl.LazyFrame) -> pl.DataFrame:
    """The vocabulary of a column ``value`` without nulls, ids in order of first appearance.

    As the DLRM paper's implementation numbers values: from 0, over all data.
    """
    grouped = values.with_row_index("first").group_by("value")
    found = grouped.agg(pl.len().alias("count"), pl.col("first").min())
    table = found.collect(engine="streaming").sort("first").drop("first")
    return table.with_columns(pl.Series("id", np.arange(len(table), dtype=np.int32)))


def rows(vocabulary: pl.DataFrame) -> int:
    """Rows of the table that the ids need."""
    largest = vocabulary["id"].max()
    return FIRST_VALUE if largest is None else 1 + int(largest)  # pyright: ignore[reportArgumentType]


def encode(values: pl.Series, vocabulary: pl.DataFrame, length: int) -> Int32[np.ndarray, "N L"]:
    """Maps raw values to ids.

    Args:
        values: N of the column's type; nulls become `MISSING`.
        vocabulary: from `learn`.
        length: L. Lists have at most L values and are filled with `ABSENT`; the bag of a null or
            empty list is empty.
    """
    if not isinstance(values.dtype, pl.List):
        return _ids(values, vocabulary)[:, None]
    lengths = values.list.len().fill_null(0).to_numpy()
    flat = values.filter(values.list.len() > 0).explode()
    bags = np.full((len(values), length), ABSENT, np.int32)
    bags[np.arange(length) < lengths[:, None]] = _ids(flat, vocabulary)
    return bags


def _ids(values: pl.Series, vocabulary: pl.DataFrame) -> Int32[np.ndarray, " N"]:
    frame = values.alias("value").to_frame()
    # Nulls match nothing; an absent id of a value that is there is an unseen value.
    joined = frame.join(
        vocabulary.select("value", "id"), on="value", how="left", maintain_order="left"
    )
    null = pl.when(pl.col("value").is_null()).then(MISSING).otherwise(UNSEEN)
    return joined.select(pl.col("id").fill_null(null.cast(pl.Int32)))["id"].to_numpy()
