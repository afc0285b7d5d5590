"""From the values of a categorical column to rows of its table.

A vocabulary is a frame with the columns ``value``, ``count`` (in the training part) and ``id``,
kept as Parquet beside the arrays.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Int32

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.errors import UserError

UNSEEN = 0
"""The id of values that aren't in the vocabulary, rare ones included."""
MISSING = 1
"""The id of missing values."""
FIRST_VALUE = 2
"""The id of the most frequent value."""

_SHARED_PART = 8


def learn(
    values: pl.LazyFrame,
    min_count: int = 1,
    max_rows: int = 0,
    known: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The vocabulary of a column ``value``: frequent values get small ids.

    Equally frequent ones are ordered by value. Memory grows with the distinct values only.

    Args:
        values: of the training part, as often as they occur; nulls and lists allowed.
        min_count: rarer values are left out, and so share the row `UNSEEN`.
        max_rows: rows that the table may have at most, 0 for no limit. The most frequent
            values get rows of their own, all others share the last eighth of the rows.
        known: a vocabulary that grows: its values keep their ids and the new ones follow; the
            counts add up.

    Raises:
        UserError: values have another type than the known ones.
    """
    if isinstance(values.collect_schema()["value"], pl.List):
        values = values.explode("value")
    counts = values.drop_nulls().group_by("value").agg(pl.len().alias("count"))
    if known is not None:
        return _grown(counts.collect(engine="streaming"), min_count, max_rows, known)
    kept = counts.filter(pl.col("count") >= min_count).collect(engine="streaming")
    return _numbered(kept, max_rows, 0)


def _numbered(counts: pl.DataFrame, max_rows: int, before: int) -> pl.DataFrame:
    """Values by frequency, with ids that follow those of so many values before."""
    ordered = counts.sort(["count", "value"], descending=[True, False])
    ids = FIRST_VALUE + before + np.arange(len(ordered), dtype=np.int64)
    if max_rows and FIRST_VALUE + before + len(ordered) > max_rows:
        shared = max(1, max_rows // _SHARED_PART)
        first = max_rows - shared
        ids = np.where(ids < first, ids, first + (ids - first) % shared)
    return ordered.with_columns(pl.Series("id", ids.astype(np.int32)))


def _grown(
    counts: pl.DataFrame, min_count: int, max_rows: int, known: pl.DataFrame
) -> pl.DataFrame:
    if counts["value"].dtype != known["value"].dtype:
        raise UserError(
            f"a vocabulary grows by values of its own type, {known['value'].dtype}, got "
            f"{counts['value'].dtype}"
        )
    new = counts.filter(pl.col("count") >= min_count).join(known, on="value", how="anti")
    again = known.join(counts, on="value", how="left", maintain_order="left")
    total = pl.col("count") + pl.col("count_right").fill_null(0)
    kept = again.select("value", total.alias("count"), "id")
    return pl.concat([kept, _numbered(new, max_rows, len(known))])


def learn_in_order(values: pl.LazyFrame, first_id: int = 0, min_count: int = 1) -> pl.DataFrame:
    """The vocabulary of a column ``value`` without nulls, ids in order of first appearance.

    Args:
        values: of all data, as often as they occur.
        first_id: 0 as in the DLRM paper's implementation, 2 as in TorchRec's
            ``sparse_to_contiguous``.
        min_count: rarer values have the id 1, as in the latter.
    """
    grouped = values.with_row_index("first").group_by("value")
    found = grouped.agg(pl.len().alias("count"), pl.col("first").min())
    table = found.collect(engine="streaming").sort("first").drop("first")
    kept = table["count"].to_numpy() >= min_count
    ids = np.where(kept, first_id - 1 + np.cumsum(kept), 1)
    return table.with_columns(pl.Series("id", ids.astype(np.int32)))


def rows(vocabulary: pl.DataFrame) -> int:
    """Rows of the table that the ids need."""
    largest = vocabulary["id"].max()
    return FIRST_VALUE if largest is None else 1 + int(largest)  # pyright: ignore[reportArgumentType]


def encode(
    values: pl.Series, vocabulary: pl.DataFrame, length: int, unseen: int | None = UNSEEN
) -> Int32[np.ndarray, "N L"]:
    """Maps raw values to ids.

    Args:
        values: N of the column's type; nulls become `MISSING`.
        vocabulary: from `learn`.
        length: L. Lists have at most L values and are filled with `ABSENT`; the bag of a null or
            empty list is empty.
        unseen: the id of values that the vocabulary doesn't have; None if there is none.

    Raises:
        UserError: naming an unseen value that has no id.
    """
    if not isinstance(values.dtype, pl.List):
        return _ids(values, vocabulary, unseen)[:, None]
    lengths = values.list.len().fill_null(0).to_numpy()
    flat = values.filter(values.list.len() > 0).explode()
    bags = np.full((len(values), length), ABSENT, np.int32)
    bags[np.arange(length) < lengths[:, None]] = _ids(flat, vocabulary, unseen)
    return bags


def _ids(
    values: pl.Series, vocabulary: pl.DataFrame, unseen: int | None
) -> Int32[np.ndarray, " N"]:
    frame = values.alias("value").to_frame()
    known = vocabulary.select("value", "id")
    ids = frame.join(known, on="value", how="left", maintain_order="left")["id"]  # null: unknown
    if unseen is None and len(unknown := values.filter(ids.is_null() & values.is_not_null())):
        raise UserError(
            f"the value {unknown[0]!r} isn't in the vocabulary, whose ids are another program's "
            f"and have none for such values; prepare training data with our own ids"
        )
    found = ids.fill_null(unseen or 0).to_numpy()
    if values.null_count():
        found = np.where(values.is_null().to_numpy(), np.int32(MISSING), found)
    return found
