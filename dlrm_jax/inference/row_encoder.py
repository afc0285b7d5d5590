"""Maps raw rows to ids quickly: what preprocessing said of a value is remembered.

The code of preprocessing works on whole columns, and takes a tenth of a millisecond for each
operation, however few rows there are. So the ids that it gives are remembered, for some
thousand values of each column, and dense features are transformed side by side as if they were one
column. A value that isn't known goes through the code of preprocessing. So do all rows that are odd
in any way: that code alone says what is wrong with a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int, Int32

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.preprocessing.columns import transformed
from dlrm_jax.data.preprocessing.serving import LogEncoder
from dlrm_jax.data.preprocessing.standardization import standardized
from dlrm_jax.errors import UserError
from dlrm_jax.inference.known_ids import Known, Values
from dlrm_jax.inference.rows import NAME, as_frame, frame_of, with_shared

Columns = Mapping[str, Sequence[Any]]
"""The values of each column: one for each row, or one that all rows share."""

_LARGEST = float(np.finfo(np.float32).max)
_NUMBERS = {int, float, type(None)}


class RowEncoder:
    """Gives raw rows the ids and dense features that a `LogEncoder` gives. Threads may share it.

    Args:
        encoder: encoder.

    Attributes:
        encoder: encoder.
    """

    def __init__(self, encoder: LogEncoder):
        self.encoder = encoder
        options, self._schema = encoder.options, encoder.options.schema
        # Ids of other programs and multi-hot ones have settings by the number of the column.
        self._is_special = bool(options.compatible or options.multi_hot_sizes)
        self._known = {name: Known() for name in self._schema.categorical}
        transforms = dict.fromkeys(map(self._schema.transform_of, self._schema.dense))
        self._dense = [_DenseColumns(encoder, x) for x in transforms]

    def rows(self, rows: Any, shared: Mapping[str, Any] | None = None) -> Examples:
        """Encodes rows, see `rows.as_frame`.

        Args:
            rows: rows.
            shared: values by column that all rows share; then rows are dicts of the other columns.

        Raises:
            UserError: they are malformed; the message names row, from 0, and column.
        """
        columns = self.columns_of(rows, shared or {})
        if columns and (found := self.columns(columns, len(rows))):
            return found
        rows = with_shared(rows, shared) if shared else rows
        frame = as_frame(rows, self.encoder.columns, self._schema.numbers)
        return self.encoder.rows(frame, NAME)

    def columns_of(self, rows: Any, shared: Mapping[str, Any]) -> Columns | None:
        """The values of dicts; None if a column is missing or twice, or they are something else."""
        if not isinstance(rows, list | tuple) or not all(type(row) is dict for row in rows):
            return None
        if shared and not all(map(shared.keys().isdisjoint, rows)):
            return None
        try:
            return {
                name: [shared[name]] if name in shared else [row[name] for row in rows]
                for name in self.encoder.columns
            }
        except KeyError:
            return None

    def columns(self, columns: Columns, count: int, known_only: bool = False) -> Examples | None:
        """Encodes rows; None if they are odd, so that it takes whole columns.

        Args:
            columns: values of all columns.
            count: number of rows.
            known_only: whether to give None for values without a known id, too. Then it
                takes microseconds.
        """
        if self._is_special or not count:
            return None
        dense = self._dense_features(columns, count)
        if dense is None:
            return None
        ids = self._all_ids(columns, count, known_only)
        if ids is None:
            return None
        several = (len(self._schema.labels),) if len(self._schema.labels) > 1 else ()
        return Examples(dense, ids, np.full((count, *several), np.nan, np.float32))

    def _dense_features(self, columns: Columns, count: int) -> Float32[np.ndarray, "N D"] | None:
        """None if there is anything but finite numbers."""
        names = self._schema.dense
        values = [columns[name] for name in names]
        if not {*map(type, itertools.chain.from_iterable(values))} <= _NUMBERS:
            return None
        found = np.empty((count, len(names)), np.float32)
        for each in self._dense:
            for rows in {count, 1}:
                places = [i for i in each.places if len(values[i]) == rows]
                try:
                    numbers = np.array([values[i] for i in places], np.float64)
                except OverflowError:
                    return None
                if (np.abs(numbers) > _LARGEST).any():
                    return None
                if places:
                    found[:, places] = each.features(places, numbers).T
        return found

    def _all_ids(
        self, columns: Columns, count: int, known_only: bool
    ) -> Int[np.ndarray, "N C"] | None:
        """None if the code of preprocessing refuses a value."""
        lengths, found = self._schema.bag_lengths, dict[str, Any]()
        values: dict[str, Values | None] = {}  # of the other columns
        for name, known in self._known.items():
            ids = None if name in lengths else known.of_known(columns[name])
            if ids is None:
                values[name] = Values.of(columns[name], known, lengths.get(name))
            found[name] = ids
        unknown = {
            name: columns[name] if own is None else own.unknown_rows()
            for name, own in values.items()
            if own is None or own.unknown
        }
        mapped: Mapping[str, np.ndarray] = {}
        if unknown:
            if known_only:
                return None
            try:
                mapped = self._by_preprocessing(unknown)
            except UserError:
                return None
        for name, own in values.items():
            if own is None:
                found[name] = mapped[name][: len(columns[name])]
                continue
            if name in mapped:
                own.learn(mapped[name])
            found[name] = own.ids()
        return self._side_by_side(found, count)

    def _side_by_side(self, found: Mapping[str, Any], count: int) -> Int32[np.ndarray, "N C"]:
        """The ids of all columns: lists, or arrays of bags; of one row if all share it."""
        ids = np.empty((count, sum(self._schema.lengths)), np.int32)
        starts = [0, *itertools.accumulate(self._schema.lengths)]
        single, places = [], []
        for start, column in zip(starts, found.values(), strict=False):
            if isinstance(column, list):
                single.append(column if len(column) == count else column * count)
                places.append(start)
            else:
                ids[:, start : start + column.shape[1]] = column
        ids[:, places] = np.array(single, np.int32).reshape(len(places), count).T
        return ids

    def _by_preprocessing(self, columns: Columns) -> dict[str, Int32[np.ndarray, "N L"]]:
        """The ids of some columns, the shorter of which are filled up with missing values."""
        rows = max(map(len, columns.values()))
        encoder = self.encoder.only(columns)
        filled = {x: [*columns[x], *[None] * (rows - len(columns[x]))] for x in encoder.columns}
        ids = np.asarray(encoder.rows(frame_of(filled, self._schema.numbers), NAME).ids)
        ends = np.cumsum(encoder.options.lengths)[:-1]
        return dict(zip(encoder.columns, np.split(ids, ends, axis=1), strict=True))


class _DenseColumns:
    """The dense columns that have one transform.

    Args:
        encoder: encoder of all columns.
        transform: transform.

    Attributes:
        places: their numbers among the dense columns.
    """

    def __init__(self, encoder: LogEncoder, transform: str):
        schema, scales = encoder.options.schema, encoder.scales.scales
        names = enumerate(schema.dense)
        self.places = [i for i, name in names if schema.transform_of(name) == transform]
        self._known = {i: Known() for i in self.places}
        self._x = transformed(pl.col("x"), transform)
        self._scales: dict[int, tuple[float, float]] = {}  # mean and deviation
        if transform.endswith("standardize"):
            self._scales = {i: scales[f"d{i}"] for i in self.places}
            self._x = standardized(self._x, pl.col("mean"), pl.col("deviation"))

    def features(
        self, places: Sequence[int], numbers: Float64[np.ndarray, "D N"]
    ) -> Float32[np.ndarray, "D N"]:
        """The features of numbers.

        Args:
            places: some of the columns.
            numbers: their values; NaN is a missing one.
        """
        if numbers.shape[1] > 1:
            return self._transformed(places, numbers)
        keys = [x.hex() for x in numbers[:, 0].tolist()]  # -0.0 isn't 0.0
        own = [self._known[i] for i in places]
        found = [x.get(key) for x, key in zip(own, keys, strict=True)]
        if None in found:
            features = self._transformed(places, numbers)
            for known, key, feature in zip(own, keys, features[:, 0], strict=True):
                known.add({key: feature})
            return features
        return np.array(found, np.float32)[:, None]

    def _transformed(
        self, places: Sequence[int], numbers: Float64[np.ndarray, "D N"]
    ) -> Float32[np.ndarray, "D N"]:
        frame = pl.Series("x", numbers.ravel(), nan_to_null=True).to_frame()
        if self._scales:
            scales = [self._scales[i] for i in places]
            mean, deviation = np.repeat(scales, numbers.shape[1], axis=0).T
            frame = frame.with_columns(pl.Series("mean", mean), pl.Series("deviation", deviation))
        found = frame.select(self._x.fill_null(0)).to_series()
        return found.to_numpy().reshape(numbers.shape)
