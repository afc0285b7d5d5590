"""Maps new logs to the ids of a stream's values, in memory, for prediction."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.preprocessing import few_rows
from dlrm_jax.data.preprocessing.columns import label_arrays, transform_dense
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.raw_ids import joined, raw_ids
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.serving import LogEncoder
from dlrm_jax.data.preprocessing.standardization import Scales
from dlrm_jax.data.preprocessing.unseen_values import UnseenValues


class RawIdEncoder(LogEncoder):
    """Gives logs the dense features and the 64-bit ids that a stream's training gives its rows.

    It needs no vocabulary: each value has an id of its own, which the model's tables give a row.

    Args:
        schema: meaning of the columns.
    """

    def __init__(self, schema: Schema):
        self._trained, self._prepared = schema, Path()
        of_rows = dataclasses.replace(schema, weight=None, timestamp=None, groups=())
        self.options = Options(of_rows)
        self.types = dict.fromkeys(of_rows.categorical, pl.String())
        self._scales = Scales()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, the main one first."""
        return self._trained.labels

    def unseen_values(self) -> UnseenValues:
        """Counts of nothing: an id may be new at any time."""
        schema = self.options.schema
        return UnseenValues(schema.categorical, schema.lengths, has_id=False)

    def _encode(
        self, rows: pl.DataFrame, name: str | None = None, place: str = "", first_row: int = 0
    ) -> Examples:
        schema, place = self.options.schema, name or place
        dense = np.empty((len(rows), 0), np.float32)
        if schema.dense:
            columns = few_rows.select(rows, [f"d{i}" for i in range(len(schema.dense))])
            dense = transform_dense(columns, self.options, 0, self._scales)
        ids = joined(raw_ids(rows, schema, place), schema, place, first_row)
        return Examples(np.ascontiguousarray(dense), ids, label_arrays(rows, schema))
