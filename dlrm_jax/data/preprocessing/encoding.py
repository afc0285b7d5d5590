"""Maps raw values to ids: of rows in memory, or chunk by chunk of a file."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int32

from dlrm_jax.data.multi_hot import synthetic_tables
from dlrm_jax.data.preprocessing import bins, vocabulary
from dlrm_jax.data.preprocessing.logs import first_place
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.staging import Staged
from dlrm_jax.data.special_ids import MISSING, UNSEEN
from dlrm_jax.errors import UserError

# Bag places encoded at a time, 4 bytes each, and rows, 40 bytes each while a column is joined.
# Larger chunks cost memory; smaller ones time, as every vocabulary is hashed each time.
_PLACES, _ROWS = 1 << 27, 1 << 22
_ROWS_IN_CACHE = 1 << 12

_log = logging.getLogger(__name__)

_UNSEEN = {"": UNSEEN, "reference": None, "torchrec": 1}


def special_ids(compatible: str) -> dict[str, int]:
    """The ids of ``"unseen"`` and of ``"missing"`` values, as far as they have one of their own.

    Args:
        compatible: implementation whose ids they are, see `Options`; other ones number a missing
            value as 0 is.
    """
    found = {"unseen": _UNSEEN[compatible], "missing": None if compatible else MISSING}
    return {name: number for name, number in found.items() if number is not None}


@dataclasses.dataclass
class Encoder:
    """The ids of columns of a file, for rows that are requested in order.

    Attributes:
        staged: the file.
        options: options of the data.
        vocabularies: vocabulary file of each categorical column.
        columns: indices of the columns.
        stop: the row after the last that will be requested.
        together: number of encoders that have ids in memory at a time.
    """

    staged: Staged
    options: Options
    vocabularies: Sequence[Path]
    columns: Sequence[int]
    stop: int
    together: int = 1

    def __post_init__(self) -> None:
        self._width = sum(self.options.schema.lengths[i] for i in self.columns)
        self._rows = max(1, min(_ROWS, _PLACES // self._width) // self.together)
        self._first = self._after = 0  # rows with ids in memory
        self._ids: list[np.ndarray] = []

    def __call__(self, start: int, stop: int) -> Int32[np.ndarray, "n C"]:
        """The ids of rows [start, stop), with the columns side by side.

        Raises:
            UserError: a value has no id.
        """
        out = np.empty((stop - start, self._width), np.int32)
        row = start
        while row < stop:
            if not self._first <= row < self._after:
                self._encode(row)
            # Few rows at a time: the columns' ids meet in a core's cache.
            last = min(row + _ROWS_IN_CACHE, stop, self._after)
            bags = [ids[row - self._first : last - self._first] for ids in self._ids]
            np.concatenate(bags, axis=1, out=out[row - start : last - start])
            row = last
        return out

    def for_column(self, column: int, stop: int) -> Encoder:
        """An encoder of one of the columns."""
        return dataclasses.replace(self, columns=[column], stop=stop)

    def _encode(self, row: int) -> None:
        self._first, self._after = row, min(row + self._rows, self.stop)
        self._ids.clear()
        for i in self.columns:
            rows = self.staged.scan().select(f"c{i}").slice(row, self._after - row).collect()
            entries = functools.partial(vocabulary.read_entries, path=self.vocabularies[i])
            self._ids.append(encode_column(rows, i, self.options, entries))


def encode_column(
    rows: pl.DataFrame,
    column: int,
    options: Options,
    entries: Callable[[pl.Series], pl.DataFrame],
    name: str | None = None,
) -> Int32[np.ndarray, "n L"]:
    """The ids of a categorical column.

    Args:
        rows: rows as `columns` describes them.
        column: index of the column.
        options: options of the data.
        entries: function that gives the entries of its vocabulary for some values, or more; of
            bins, all entries.
        name: name of the rows for messages, if these are all.

    Raises:
        UserError: a value has no id, or the column has another type than in training.
    """
    schema, values = options.schema, rows[f"c{column}"]
    if options.compatible:
        values = rows.select(raw_values(column, options))["value"]
    if schema.categorical[column] in schema.bins:
        return bins.encode(values, entries(values))
    unseen = _UNSEEN[options.compatible]
    try:
        return vocabulary.encode(values, entries(values), schema.lengths[column], unseen)
    except UserError as error:
        values = values.alias(schema.categorical[column])
        place = f"column {values.name}" if name is None else first_place(name, values)
        raise UserError(f"{place}: {error}") from error


def expansions(options: Options, rows: Sequence[int], directory: Path) -> list[Path]:
    """Writes the tables that make several ids of one, see `multi_hot`; none if ids stay single."""
    if max(options.multi_hot_sizes, default=1) == 1:
        return []
    _log.info("multi-hot tables")
    return synthetic_tables(rows, options.multi_hot_sizes, directory)


def raw_values(column: int, options: Options) -> pl.Expr:
    """The values of a categorical column of a staged file, as a column ``value``."""
    values = pl.col(f"c{column}").alias("value")
    return values.fill_null(0) if options.compatible else values
