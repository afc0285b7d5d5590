"""From the values of a categorical column to rows of its table.

A vocabulary is a frame with the columns ``value``, ``count`` (in the training part) and ``id``,
kept as Parquet beside the arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
_DISTINCT_PER_PART = 1 << 24
_LARGE = 1 << 22


def learn(
    values: Sequence[pl.LazyFrame],
    min_count: int = 1,
    max_rows: int = 0,
    known: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The vocabulary of a column ``value``: frequent values get small ids.

    Equally frequent ones are ordered by value. Memory grows with the distinct values only.

    Args:
        values: of the training part of each file, as often as they occur; nulls and lists allowed.
        min_count: rarer values are left out, and so share the row `UNSEEN`.
        max_rows: rows that the table may have at most, 0 for no limit. The most frequent
            values get rows of their own, all others share the last eighth of the rows.
        known: a vocabulary that grows: its values keep their ids and the new ones follow; the
            counts add up.

    Raises:
        UserError: values have another type than the known ones, or these have more rows than
            the table may have.
    """
    present, most = pl.concat(values, how="vertical_relaxed"), sum(map(_length, values))
    if isinstance(present.collect_schema()["value"], pl.List):
        present, most = present.explode("value"), None
    present = present.drop_nulls()
    if known is None:
        return _numbered(_distinct(present, most, min_count), max_rows, FIRST_VALUE)
    return _grown(_distinct(present, most), min_count, max_rows, known)


def _length(frame: pl.LazyFrame) -> int:
    # Of one file: Polars counts in 32 bits.
    return frame.select(pl.len()).collect(engine="streaming").item()


def _distinct(
    values: pl.LazyFrame, most: int | None, min_count: int = 1, *aggregated: pl.Expr
) -> pl.DataFrame:
    """Distinct values that occur so often, with their counts; in no order.

    Counting needs some 40 bytes a distinct value, so many of them are counted part by part.

    Args:
        values: without nulls.
        most: that there can be; None if that isn't known.
        min_count: how often.
        aggregated: further columns.
    """
    hashed = pl.col("value").hash()
    distinct = most
    if distinct is None or distinct > _DISTINCT_PER_PART:
        distinct = values.select(hashed.approx_n_unique()).collect(engine="streaming").item()
    parts = 1 + distinct // _DISTINCT_PER_PART
    found = []
    for part in range(parts):
        own = values.filter(hashed % parts == part) if parts > 1 else values
        counted = own.group_by("value").agg(pl.len().alias("count"), *aggregated)
        frequent = counted.filter(pl.col("count") >= min_count)
        found.append(frequent.collect(engine="streaming"))
    return pl.concat(found)


def _numbered(counts: pl.DataFrame, max_rows: int, first_id: int) -> pl.DataFrame:
    """Values by frequency, with consecutive ids as far as the table may have rows."""
    ordered = counts.sort(["count", "value"], descending=[True, False])
    ids = np.arange(first_id, first_id + len(ordered), dtype=np.int64)
    if max_rows and first_id + len(ordered) > max_rows:
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
    before = rows(known.lazy())
    if max_rows and before > max_rows:
        raise UserError(
            f"the table that grows has {before} rows already, more than max_rows = {max_rows}"
        )
    new = counts.filter(pl.col("count") >= min_count).join(known, on="value", how="anti")
    again = known.join(counts, on="value", how="left", maintain_order="left")
    total = pl.col("count") + pl.col("count_right").fill_null(0)
    kept = again.select("value", total.alias("count"), "id")
    return pl.concat([kept, _numbered(new, max_rows, before)])


def learn_in_order(
    values: Sequence[pl.LazyFrame], lengths: Sequence[int], first_id: int = 0, min_count: int = 1
) -> pl.DataFrame:
    """The vocabulary of a column ``value`` without nulls, ids in order of first appearance.

    Args:
        values: of all files, as often as they occur.
        lengths: of the files, in rows.
        first_id: 0 as in the DLRM paper's implementation, 2 as in TorchRec's
            ``sparse_to_contiguous``.
        min_count: rarer values have the id 1, as in the latter.
    """
    # Polars counts rows in 32 bits, of which Terabyte has more: numbers are made file by file.
    starts = itertools.accumulate(lengths, initial=0)
    number = pl.col("first").cast(pl.Int64)
    numbered = [
        frame.with_row_index("first").with_columns(number + start)
        for frame, start in zip(values, starts, strict=False)
    ]
    found = _distinct(pl.concat(numbered), sum(lengths), 1, pl.col("first").min())
    table = found.sort("first").drop("first")
    kept = table["count"].to_numpy() >= min_count
    ids = np.where(kept, first_id - 1 + np.cumsum(kept), 1)
    return table.with_columns(pl.Series("id", ids.astype(np.int32)))


def rows(vocabulary: pl.LazyFrame) -> int:
    """Rows of the table that the ids need."""
    largest = vocabulary.select(pl.col("id").max()).collect().item()
    return FIRST_VALUE if largest is None else 1 + largest


def read_for(values: pl.Series, path: Path) -> pl.DataFrame:
    """What a kept vocabulary says of these values.

    Of a large one only the lines of values that occur are read: a join with all of it would hash
    all, in 70 bytes a line.
    """
    vocabulary = pl.scan_parquet(path, glob=False).select("value", "id")
    if vocabulary.select(pl.len()).collect().item() > _LARGE:
        flat = values.explode() if isinstance(values.dtype, pl.List) else values
        occurring = flat.unique().to_frame("value").lazy()
        vocabulary = vocabulary.join(occurring, on="value", how="semi")
    return vocabulary.collect(engine="streaming")


def encode(
    values: pl.Series, vocabulary: pl.DataFrame, length: int, unseen: int | None = UNSEEN
) -> Int32[np.ndarray, "N L"]:
    """Maps raw values to ids.

    Args:
        values: N of the column's type, as `as_known` makes them; nulls become `MISSING`.
        vocabulary: from `learn` or `read_for` these values.
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


def value_type(path: Path) -> Any:
    """The type of the values of a kept vocabulary, one of Polars'."""
    return pl.scan_parquet(path, glob=False).collect_schema()["value"]


def as_known(values: pl.Series, known: Any) -> pl.Series:
    """Values in the type that a vocabulary knows them in, if nothing is lost.

    Whole numbers come as floats where some are missing, or as text from CSV; a column without any
    value has no type.

    Args:
        values: of one column, or lists of them.
        known: the `value_type` of the vocabulary.

    Raises:
        UserError: they are of another type.
    """
    is_list = isinstance(values.dtype, pl.List)
    own = values.dtype.inner if isinstance(values.dtype, pl.List) else values.dtype
    if own == known or (own.is_integer() and known.is_integer()):
        return values
    if own == pl.Null or (known.is_integer() and (own.is_float() or own == pl.String)):
        cast = values.cast(pl.List(known) if is_list else known, strict=False)
        flat, back = (x.explode() if is_list else x for x in (values, cast))
        if own == pl.Null or back.cast(own).equals(flat):
            return cast
    raise UserError(f"expected values of type {known}, as in training, got {own}")


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
