"""Maps the values of a categorical column to rows of its table.

A vocabulary is a frame with the columns ``value``, ``count`` (in the training split) and ``id``,
stored as Parquet beside the arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int32

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.formats import parquet
from dlrm_jax.data.preprocessing.value_types import cast_values, cast_whole
from dlrm_jax.data.special_ids import FIRST_VALUE, MISSING, UNSEEN
from dlrm_jax.errors import UserError, shown

_NO_VALUES = (pl.List, pl.Array, pl.Categorical, pl.Enum, pl.Object)
_COUNT = pl.Int64()  # those of days add up
_DISTINCT_PER_PASS = 1 << 24
_LARGE = 1 << 22
_FEW = 1000
_SHARED = 8  # an eighth of a full table is for values without a row of their own


def learn(
    values: Sequence[pl.LazyFrame],
    min_count: int = 1,
    max_rows: int = 0,
    known: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Learns a vocabulary; frequent values get small ids.

    Equally frequent values are ordered by value. Memory grows with the distinct values only.

    Args:
        values: column ``value`` of the training rows of each file, of all columns that share the
            vocabulary; nulls and lists are allowed. NaN is a missing value.
        min_count: minimum number of occurrences; rarer values share the row `UNSEEN`.
        max_rows: maximum number of rows of the table, 0 for no limit. The most frequent values
            get a row each, all others share the last eighth of the rows.
        known: vocabulary to continue: its values keep their ids, new values follow, and counts
            add up.

    Raises:
        UserError: values have another type than the known ones, or these have more rows than
            the table may have.
    """
    lists = [isinstance(frame.collect_schema()["value"], pl.List) for frame in values]
    # File by file: Polars counts in 32 bits.
    most = None
    if not any(lists):
        most = sum(frame.select(pl.len()).collect(engine="streaming").item() for frame in values)
    flat = [x.explode("value") if is_list else x for x, is_list in zip(values, lists, strict=True)]
    present = pl.concat(flat, how="vertical_relaxed").drop_nulls()
    if present.collect_schema()["value"].is_float():
        present = present.filter(pl.col("value").is_not_nan())
    if known is None:
        return _numbered(_distinct(present, most, min_count), max_rows, FIRST_VALUE)
    return _grown(_distinct(present, most), min_count, max_rows, known)


def _distinct(
    values: pl.LazyFrame, most: int | None, min_count: int = 1, *aggregated: pl.Expr
) -> pl.DataFrame:
    """Distinct values with their counts, in no order.

    ``most`` bounds the number of distinct values; None if unknown. Counting needs about 40 bytes
    per distinct value, so columns with many are counted in several passes.
    """
    hashed = pl.col("value").hash()
    distinct = most
    if distinct is None or distinct > _DISTINCT_PER_PASS:
        distinct = values.select(hashed.approx_n_unique()).collect(engine="streaming").item()
    passes = 1 + distinct // _DISTINCT_PER_PASS
    counts = []
    for i in range(passes):
        own = values.filter(hashed % passes == i) if passes > 1 else values
        count = pl.len().cast(_COUNT).alias("count")
        counted = own.group_by("value").agg(count, *aggregated)
        frequent = counted.filter(pl.col("count") >= min_count)
        counts.append(frequent.collect(engine="streaming"))
    return pl.concat(counts)


def _numbered(counts: pl.DataFrame, max_rows: int, first_id: int) -> pl.DataFrame:
    """Values by frequency, with consecutive ids as far as the table may have rows."""
    ordered = counts.sort(["count", "value"], descending=[True, False])
    ids = np.arange(first_id, first_id + len(ordered), dtype=np.int64)
    if max_rows and first_id + len(ordered) > max_rows:
        shared = max(1, max_rows // _SHARED)
        first = max_rows - shared
        ids = np.where(ids < first, ids, first + (ids - first) % shared)
    return ordered.with_columns(pl.Series("id", ids.astype(np.int32)))


def _grown(
    counts: pl.DataFrame, min_count: int, max_rows: int, known: pl.DataFrame
) -> pl.DataFrame:
    if known["value"].dtype == pl.Null:  # its column had no value, and thus no type
        known = known.with_columns(pl.col("value").cast(counts["value"].dtype))
    known = known.cast({"count": _COUNT})  # fewer bits in files of earlier versions
    counts = counts.with_columns(cast_whole(counts["value"], known["value"].dtype))
    # Several texts may be one number: 3 and 3.0.
    counts = counts.group_by("value").agg(pl.col("count").sum())
    before = rows_needed(known.lazy())
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
    """Learns a vocabulary with ids in order of first appearance.

    Args:
        values: column ``value`` of each file, without nulls.
        lengths: rows of each file.
        first_id: the first id: 0 as in the DLRM paper's implementation, 2 as in TorchRec's
            ``sparse_to_contiguous``.
        min_count: minimum number of occurrences; rarer values have the id 1, as in the latter.
    """
    # Polars counts rows in 32 bits, of which Terabyte has more: numbers are made file by file.
    starts = itertools.accumulate(lengths, initial=0)
    number = pl.col("first").cast(pl.Int64)
    numbered = [
        frame.with_row_index("first").with_columns(number + start)
        for frame, start in zip(values, starts, strict=False)
    ]
    distinct = _distinct(pl.concat(numbered), sum(lengths), 1, pl.col("first").min())
    table = distinct.sort("first").drop("first")
    frequent = table["count"].to_numpy() >= min_count
    ids = np.where(frequent, first_id - 1 + np.cumsum(frequent), 1)
    return table.with_columns(pl.Series("id", ids.astype(np.int32)))


def rows_needed(vocabulary: pl.LazyFrame) -> int:
    """The number of rows that the ids of a vocabulary need."""
    largest = vocabulary.select(pl.col("id").max()).collect().item()
    return FIRST_VALUE if largest is None else 1 + largest


def read_whole(path: Path) -> pl.DataFrame:
    """Reads a stored vocabulary.

    Raises:
        UserError: it can't be read, has columns of other types, an id that is none, or a value
            twice.
    """
    with parquet.reading(f"the vocabulary {path}"):
        vocabulary = pl.read_parquet(path, glob=False).select("value", "count", "id")
    check_types(vocabulary.schema, path)
    wrong = vocabulary["id"].filter(vocabulary["id"].is_null() | (vocabulary["id"] < 0))
    if len(wrong):
        raise UserError(_damaged(f"the vocabulary {path}", f"the id {wrong[0]}"))
    if vocabulary["value"].n_unique() < len(vocabulary):
        twice = vocabulary["value"].filter(vocabulary["value"].is_duplicated())[0]
        raise UserError(_damaged(f"the vocabulary {path}", f"the value {twice!r} twice"))
    return vocabulary


def check_types(types: Mapping[str, Any], path: Path) -> None:
    """Checks the types of a stored vocabulary's columns.

    Raises:
        UserError: ids or counts aren't integers, or values are lists, or numbers of categories.
    """
    wrong = [x for x in ("count", "id") if x in types and not types[x].is_integer()]
    if isinstance(types["value"], _NO_VALUES):
        wrong.append("value")
    if wrong:
        name = wrong[0]
        raise UserError(_damaged(f"the vocabulary {path}", f"{name} of type {types[name]}"))


def read_entries(values: pl.Series, path: Path) -> pl.DataFrame:
    """Reads the entries of a stored vocabulary for these values.

    Joining with all of a large vocabulary would hash it whole, in 70 bytes a line; only the
    matching lines are read.
    """
    with parquet.reading(f"the vocabulary {path}"):
        vocabulary = pl.scan_parquet(path, glob=False).select("value", "id")
        check_types(vocabulary.collect_schema(), path)
        if vocabulary.select(pl.len()).collect().item() > _LARGE:
            flat = values.explode() if isinstance(values.dtype, pl.List) else values
            known = vocabulary.collect_schema()["value"]
            occurring = cast_values(flat.unique(), known).to_frame("value").lazy()
            vocabulary = vocabulary.join(occurring, on="value", how="semi")
        return vocabulary.collect(engine="streaming")


def encode(
    values: pl.Series, vocabulary: pl.DataFrame, length: int, unseen: int | None = UNSEEN
) -> Int32[np.ndarray, "N L"]:
    """Maps raw values to ids.

    Args:
        values: N values, of a type that `cast_values` takes; nulls become `MISSING`.
        vocabulary: vocabulary from `learn`, or from `read_entries` these values.
        length: bag length, L. Lists keep at most L values and are filled with `ABSENT`; the bag
            of a null or empty list is empty.
        unseen: id of values that the vocabulary doesn't have, which includes those of another
            type; None if there is none.

    Raises:
        UserError: an unseen value has no id, or a value is twice in the vocabulary; the message
            names it. Or the values have another type.
    """
    if not isinstance(values.dtype, pl.List):
        return _ids(values, vocabulary, unseen)[:, None]
    lengths = values.list.len().fill_null(0).to_numpy()
    flat = values.filter(lengths > 0).explode()
    bags = np.full((len(values), length), ABSENT, np.int32)
    bags[np.arange(length) < lengths[:, None]] = _ids(flat, vocabulary, unseen)
    return bags


def _damaged(vocabulary: str, found: str) -> str:
    return (
        f"{vocabulary} is damaged: it has {found}; restore vocabularies/ from a copy, or prepare "
        f"the data again"
    )


def _ids(
    values: pl.Series, vocabulary: pl.DataFrame, unseen: int | None
) -> Int32[np.ndarray, " N"]:
    known = vocabulary[["value", "id"]]
    ids = _looked_up(cast_values(values, known["value"].dtype), known)
    if unseen is None and len(unknown := values.filter(ids.is_null() & values.is_not_null())):
        raise UserError(
            f"the value {shown(unknown[0])} isn't in the vocabulary, which was made by another "
            f"program and has no id for unseen values; prepare training data with our own ids"
        )
    found = (ids.fill_null(unseen or 0) if ids.null_count() else ids).to_numpy()
    if values.dtype.is_float() and not _has_nan(known["value"]):
        values = values.fill_nan(None)
    if values.null_count():
        found = np.where(values.is_null().to_numpy(), np.int32(MISSING), found)
    return found


def _looked_up(values: pl.Series, known: pl.DataFrame) -> pl.Series:
    """The id of each value; null where there is none."""
    dtype = values.dtype
    if len(values) + len(known) < _FEW and (dtype.is_integer() or dtype == pl.String):
        # Polars joins in threads of its own, which takes as long for few values as for thousands.
        pairs = zip(known["value"].to_list(), known["id"].to_list(), strict=True)
        of_value = dict(pairs)
        is_twice = len(of_value) < len(known)
        ids = pl.Series("id", map(of_value.get, values.to_list()), known["id"].dtype)
    else:
        frame = values.alias("value").to_frame()
        joined = frame.join(known, on="value", how="left", maintain_order="left")
        is_twice = len(joined) > len(values)
        ids = joined["id"]
    if is_twice:  # the ids of all rows behind it would be another row's
        twice = known["value"].filter(known["value"].is_duplicated())[0]
        raise UserError(_damaged("its vocabulary", f"the value {twice!r} twice"))
    return ids


def _has_nan(known: pl.Series) -> bool:
    """Whether NaN has an id, as earlier versions gave it one where it was in a list."""
    return known.dtype.is_float() and known.is_nan().any()
