"""Examples and data sets as plain arrays, whatever they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64, Integer

from dlrm_jax.data.hstacked import HStacked
from dlrm_jax.errors import UserError

ABSENT = -1
"""The id of an unused place in a bag; it contributes nothing when the bag is pooled."""


@dataclass(frozen=True)
class Examples:
    """N labelled examples; the arrays may be memory maps.

    Attributes:
        dense: Features that enter the bottom MLP as they are.
        ids: Embedding rows. The bags of all categorical features lie side by side, so C is the sum
            of the bag lengths; `ABSENT` marks places that aren't used. One array, or one for each
            feature in an `HStacked`.
        labels: 0 or 1; integers in TorchRec's files.
        sample_weights: How much each example counts in the training loss; None if all count 1.

    Raises:
        UserError: If an array has another type or rank, or the arrays differ in length.
    """

    dense: Float32[np.ndarray, "N D"]
    ids: Int32[np.ndarray | HStacked, "N C"]
    labels: Float32[np.ndarray, " N"] | Int32[np.ndarray, " N"]
    sample_weights: Float32[np.ndarray, " N"] | None = None

    def __post_init__(self) -> None:
        for name, (dtypes, rank) in _ARRAYS.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.dtype not in dtypes or array.ndim != rank:
                expected = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
                raise UserError(
                    f"Examples.{name} must be a {expected} array with {rank} axes, got "
                    f"{array.dtype} of shape {array.shape}; convert it first."
                )
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(
                "Examples need arrays of the same length, got "
                f"{', '.join(f'{length} {name}' for name, length in lengths.items())}; were they "
                "cut at different places?"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Examples:
        """The examples of these rows, without a copy."""
        return Examples(**{name: array[rows] for name, array in self.arrays.items()})

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The arrays that there are, by name, as plain views.

        Gathering from np.memmap objects costs Python calls for every result.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return {
            name: array if isinstance(array, HStacked) else np.asarray(array)
            for name, array in arrays.items()
            if array is not None
        }


_ARRAYS = {
    "dense": ([np.float32], 2),
    "ids": ([np.int32], 2),
    "labels": ([np.float32, np.int32], 1),
    "sample_weights": ([np.float32], 1),
}
"""Types and rank of each array of `Examples`."""


@dataclass(frozen=True)
class Split:
    """Examples that lie in several pieces, one after the other: those of Criteo are days.

    Attributes:
        days: The pieces. A row of the split is a row of the first day, or, less the length of the
            days before, of a later one.

    Raises:
        UserError: If there is no day, or the arrays of one don't fit those of the first.
    """

    days: tuple[Examples, ...]

    def __post_init__(self) -> None:
        if not self.days:
            raise UserError("a split needs at least one day, got none; it may have no examples.")
        wanted = _widths(self.days[0])
        for number, day in enumerate(self.days):
            if _widths(day) != wanted:
                raise UserError(
                    f"the days of a split need arrays of the same width, got {wanted} in the first "
                    f"and {_widths(day)} in day {number} (from 0); prepare all days alike."
                )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: slice) -> Split:
        """The split of these rows, which follow one another, without a copy."""
        first, stop, step = rows.indices(len(self))
        if step != 1:
            raise UserError(f"a split is cut into rows that follow one another, got {rows}.")
        days = [
            day[max(first - start, 0) : max(stop - start, 0)]
            for start, day in zip(self._starts.tolist(), self.days, strict=False)
        ]
        return Split(tuple(day for day in days if len(day)) or (days[0],))

    @property
    def dense_features(self) -> int:
        """D, dense features per example."""
        return self.days[0].dense.shape[1]

    @property
    def ids_per_example(self) -> int:
        """C, the sum of the bag lengths."""
        return self.days[0].ids.shape[1]

    @property
    def labels(self) -> Float32[np.ndarray, " N"]:
        """The labels of all days, in memory."""
        return np.concatenate([day.labels for day in self.days], dtype=np.float32)

    def take(self, rows: Integer[np.ndarray, " B"]) -> Examples:
        """The examples of these rows, in this order, in memory.

        Args:
            rows: Of the split, sorted or not; one may occur several times.

        Raises:
            IndexError: If a row isn't in the split.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a split of {len(self)}")
        # Sorting the rows first makes this slower: a core has many misses under way at once.
        days = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.flatnonzero(np.bincount(days)) if len(rows) else [0]
        if len(found) == 1:
            local = rows - self._starts[found[0]]
            arrays = self.days[found[0]].arrays.items()
            return Examples(**{name: array.take(local, axis=0) for name, array in arrays})
        gathered = {
            name: np.empty((len(rows), *array.shape[1:]), array.dtype)
            for name, array in self.days[0].arrays.items()
        }
        for number in found:
            places = np.flatnonzero(days == number)
            local = rows[places] - self._starts[number]
            for name, array in self.days[number].arrays.items():
                gathered[name][places] = array.take(local, axis=0)
        return Examples(**gathered)

    @cached_property
    def _starts(self) -> Int64[np.ndarray, " D"]:
        """The first row of each day, and the length of the split."""
        return np.cumsum([0, *map(len, self.days)], dtype=np.int64)


def _widths(examples: Examples) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in examples.arrays.items()}


@dataclass(frozen=True)
class Dataset:
    """Three splits of one data set and what a model has to know about them.

    Attributes:
        train: Examples that parameters are fitted to.
        validation: Examples that choose between models.
        test: Examples that are looked at once, at the end.
        table_rows: Rows of each categorical feature's table; ids lie in [0, rows).
        bag_lengths: Ids per example of each categorical feature, padding included.
        fingerprint: Identifies the data and the options it was prepared with; two data sets with
            the same fingerprint hold the same arrays.
        source: One line for people: where the examples come from.
        teacher_auc: For generated data, per split, the AUC of the true probabilities, which no
            model beats except by luck; NaN where a split has one class only.
        directory: Where the vocabularies lie that made the ids; None if they aren't known.

    Raises:
        UserError: If the splits don't fit each other or the features.
    """

    train: Split
    validation: Split
    test: Split
    table_rows: tuple[int, ...]
    bag_lengths: tuple[int, ...]
    fingerprint: str
    source: str
    teacher_auc: Mapping[str, float] | None = None
    directory: Path | None = None

    def __post_init__(self) -> None:
        if len(self.table_rows) != len(self.bag_lengths):
            raise UserError(
                "a data set needs one bag length for each table, got "
                f"{len(self.table_rows)} tables and {len(self.bag_lengths)} bag lengths."
            )
        if min(self.table_rows + self.bag_lengths, default=1) < 1:
            raise UserError(
                "table rows and bag lengths must be at least 1, got "
                f"{self.table_rows} and {self.bag_lengths}."
            )
        dense, ids = self.train.dense_features, sum(self.bag_lengths)
        for name, split in self.splits.items():
            if split.dense_features != dense or split.ids_per_example != ids:
                raise UserError(
                    f"every split needs {dense} dense features and {ids} ids an example (the sum "
                    f"of the bag lengths), but {name} has {split.dense_features} and "
                    f"{split.ids_per_example}."
                )

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
