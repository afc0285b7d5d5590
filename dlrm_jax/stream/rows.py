"""The rows of a segment as arrays, with 64-bit ids in place of table rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import xxhash
from jaxtyping import Float32, Int64

from dlrm_jax.data.preprocessing.columns import label_arrays, normalize_columns
from dlrm_jax.data.preprocessing.log_times import has_seconds
from dlrm_jax.data.preprocessing.logs import valid_rows
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.raw_ids import RawIds, raw_ids
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.source import Segment

_ROWS = 1 << 16  # that are in memory as arrays


@dataclasses.dataclass(frozen=True)
class Rows:
    """N consecutive rows of a stream.

    Attributes:
        dense: dense features, [N, D].
        raw: ids of the categorical columns.
        labels: labels, [N], or [N, H] of several, with NaN for missing ones.
        sample_weights: weights, [N].
        groups: codes of the schema's groups by name, [N] each; -1 is none.
        times: time of each row, in microseconds since 1970, [N]; zeros without a timestamp.
    """

    dense: Float32[np.ndarray, "N D"]
    raw: RawIds
    labels: Float32[np.ndarray, "N *_"]
    sample_weights: Float32[np.ndarray, " N"]
    groups: Mapping[str, Int64[np.ndarray, " N"]]
    times: Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.sample_weights)

    def __getitem__(self, rows: slice) -> Rows:
        """Slices the rows without a copy."""
        return _of_each(lambda arrays: arrays[0][rows], [self])

    def checksum(self) -> int:
        """A number of 31 bits that other rows most likely don't have."""
        arrays = self.dense, *self.raw, self.labels, self.sample_weights
        sums = xxhash.xxh3_64()
        for array in arrays:
            sums.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return sums.intdigest() & 0x7FFFFFFF

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """Rows that follow each other, as one."""
        parts = [part for part in parts if len(part)] or parts[:1]
        return parts[0] if len(parts) == 1 else _of_each(np.concatenate, parts)


def _of_each(of: Callable[[list[np.ndarray]], np.ndarray], parts: Sequence[Rows]) -> Rows:
    return Rows(
        of([x.dense for x in parts]),
        RawIds(of([x.raw.ids for x in parts]), of([x.raw.present for x in parts])),
        of([x.labels for x in parts]),
        of([x.sample_weights for x in parts]),
        {name: of([x.groups[name] for x in parts]) for name in parts[0].groups},
        of([x.times for x in parts]),
    )


def rows_of(segment: Segment, schema: Schema, first: int = 0) -> Iterator[Rows]:
    """The rows of a segment, some thousands at a time.

    The whole segment is checked before its first row is given: a segment that is wrong anywhere
    can be mended, since nothing was trained on.

    Args:
        segment: the segment.
        schema: meaning of the columns.
        first: number of rows at its beginning to leave out.

    Raises:
        UserError: a value is malformed, such as a missing label; the message names file, row
            (from 1) and column.
    """
    place = segment.place
    try:
        frame = _checked(segment, schema)
    except UserError:
        for message in segment.of_messages():
            _checked(message, schema)
        raise
    options = Options(schema)
    for start in range(first, len(frame), _ROWS):
        part = frame.slice(start, _ROWS)
        yield _arrays(normalize_columns(part, options, place, start + 1), schema, place)


def _checked(segment: Segment, schema: Schema) -> pl.DataFrame:
    place, frame, seconds = segment.place, segment.frame, None
    if schema.timestamp and frame[schema.timestamp].dtype == pl.String:
        seconds = has_seconds(place, frame[schema.timestamp], 1)
    return valid_rows(place, schema, frame, 1, seconds=seconds)


def _arrays(rows: pl.DataFrame, schema: Schema, place: str) -> Rows:
    dense = np.zeros((len(rows), len(schema.dense)), np.float32)
    if schema.dense:
        dense[:] = rows.select(pl.col(f"d{i}").fill_null(0) for i in range(dense.shape[1]))
    weights = np.ones(len(rows), np.float32)
    if schema.weight:
        weights[:] = rows["weight"].to_numpy()
    times = np.zeros(len(rows), np.int64)
    if schema.timestamp:
        times[:] = rows["time"].to_physical().to_numpy()
    groups = {name: rows[f"group{i}"].to_numpy() for i, name in enumerate(schema.groups)}
    labels = np.ascontiguousarray(label_arrays(rows, schema), np.float32)
    return Rows(dense, raw_ids(rows, schema, place), labels, weights, groups, times)
