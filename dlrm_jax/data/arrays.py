"""Examples and data sets as plain arrays, independent of the format that they came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64, Integer

from dlrm_jax.data.hstacked import HStacked
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import check_names, numbered

ABSENT = -1
"""The id of an unused place in a bag. It contributes nothing when the bag is pooled."""


@dataclass(frozen=True)
class Examples:
    """N labelled examples; the arrays may be memory maps.

    Attributes:
        dense: features that enter the bottom MLP as they are, [N, D] float32.
        ids: rows of the embedding tables, [N, C] int32. The bags of all categorical features lie
            side by side, so C is the sum of the bag lengths; `ABSENT` marks unused places. Either
            one array, or one array per feature in an `HStacked`; or ids of a stream, int64.
        labels: 0 or 1, or between them for squared errors, [N] float32; int32 in TorchRec's files.
            If an example has several, [N, H] float32, NaN for those that it lacks.
        sample_weights: weight of each example in the training loss and in metrics, [N] float32;
            None if all weights are 1.
        groups: number of each example's group, such as its request, [N] int64, by name; -1 for an
            example without one. They aren't features.

    Raises:
        UserError: an array has another type or rank, or is masked, or the arrays differ in length.
    """

    dense: Float32[np.ndarray, "N D"]
    ids: Int32[np.ndarray | HStacked, "N C"] | Int64[np.ndarray, "N C"]
    labels: Float32[np.ndarray, " N"] | Int32[np.ndarray, " N"] | Float32[np.ndarray, "N H"]
    sample_weights: Float32[np.ndarray, " N"] | None = None
    groups: Mapping[str, Int64[np.ndarray, " N"]] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Examples:
        """Examples of arrays as `arrays` names them."""
        groups = {x[len(_GROUP) :]: y for x, y in arrays.items() if x.startswith(_GROUP)}
        others = {x: y for x, y in arrays.items() if not x.startswith(_GROUP)}
        return cls(**others, groups=groups)

    def __post_init__(self) -> None:
        lengths = {}
        for name, array in self._given.items():
            if array is None:
                continue
            if isinstance(array, np.ma.MaskedArray):  # as a plain view it would lose its mask
                raise UserError(
                    f"Examples.{name} must be a plain array, got a masked one; fill it, such as "
                    f"ids.filled(-1) for absent ids"
                )
            if not isinstance(array, np.ndarray | HStacked):
                array = np.asarray(array)
            dtypes, rank = _ARRAYS.get(name, ([np.int64], 1))
            several = name == "labels" and array.ndim == 2 and array.shape[1] > 1
            if array.dtype not in dtypes or (array.ndim != rank and not several):
                expected = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
                raise UserError(
                    f"Examples.{name} must be a {expected} array with {rank} axes, got "
                    f"{array.dtype} of shape {array.shape}; convert it first."
                )
            lengths[name] = len(array)
        if len(set(lengths.values())) > 1:
            raise UserError(
                "Examples need arrays of the same length, got "
                f"{', '.join(f'{length} {name}' for name, length in lengths.items())}; were they "
                "cut at different places?"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        """One line, without the arrays."""
        return (
            f"Examples({len(self):,} with {self.dense.shape[1]} dense features and "
            f"{self.ids.shape[1]} ids)"
        )

    def __getitem__(self, rows: slice) -> Examples:
        """Slices the examples without a copy."""
        return Examples.of({name: array[rows] for name, array in self.arrays.items()})

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The arrays that aren't None, by name, as plain views.

        Gathering from np.memmap objects costs Python calls for every result.
        """
        return {
            name: array if isinstance(array, HStacked) else np.asarray(array)
            for name, array in self._given.items()
            if array is not None
        }

    @property
    def _given(self) -> dict[str, Any]:
        groups = {f"{_GROUP}{name}": codes for name, codes in self.groups.items()}
        return {name: getattr(self, name) for name in _ARRAYS} | groups


_ARRAYS = {
    "dense": ([np.float32], 2),
    "ids": ([np.int32, np.int64], 2),
    "labels": ([np.float32, np.int32], 1),
    "sample_weights": ([np.float32], 1),
}
"""Types and rank of each array of `Examples` but those of groups."""

_GROUP = "group "


@dataclass(frozen=True)
class Split:
    """Examples of consecutive days.

    Attributes:
        days: the examples of each day, in order. Row r of the split is row r of the first day or,
            if the first day is shorter, row r - len(first day) of the rest.

    Raises:
        UserError: there is no day, or the arrays of a day don't fit those of the first.
    """

    days: tuple[Examples, ...]

    def __post_init__(self) -> None:
        if not self.days:
            raise UserError("a split needs at least one day, got none; it may have no examples.")
        for number, day in enumerate(self.days[1:], 1):
            first, widths = _widths(self.days[0]), _widths(day)
            if widths != first:
                raise UserError(
                    f"the days of a split need arrays of the same width, got {first} in the first "
                    f"and {widths} in day {number} (from 0); prepare all days alike."
                )

    def __len__(self) -> int:
        return sum(map(len, self.days))

    def __repr__(self) -> str:
        """One line, without the days."""
        return f"Split({len(self):,} examples in {len(self.days)} days)"

    def __getitem__(self, rows: slice) -> Split:
        """Slices the split without a copy; the step must be 1."""
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
    def labels_per_example(self) -> int:
        """H, labels per example."""
        return math.prod(self.days[0].labels.shape[1:])

    @property
    def labels(self) -> Float32[np.ndarray, " N"] | Float32[np.ndarray, "N H"]:
        """The labels of all days, in memory, as in `Examples`."""
        return np.concatenate([day.labels for day in self.days], dtype=np.float32)

    @property
    def sample_weights(self) -> Float32[np.ndarray, " N"] | None:
        """The weights of all days, in memory; None if all are 1."""
        found = [day.sample_weights for day in self.days if day.sample_weights is not None]
        return np.concatenate(found, dtype=np.float32) if found else None

    @property
    def groups(self) -> dict[str, Int64[np.ndarray, " N"]]:
        """The groups of all days by name, in memory."""
        names = self.days[0].groups
        return {name: np.concatenate([day.groups[name] for day in self.days]) for name in names}

    def take(self, rows: Integer[np.ndarray, " B"]) -> Examples:
        """Gathers examples into memory, in the order of ``rows``; repeats are allowed.

        Raises:
            IndexError: a row isn't in the split.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a split of {len(self)}")
        # Sorting the rows first makes this slower: a core has many misses under way at once.
        days = np.searchsorted(self._starts, rows, side="right") - 1
        used_days = np.flatnonzero(np.bincount(days)) if len(rows) else [0]
        if len(used_days) == 1:
            local = rows - self._starts[used_days[0]]
            arrays = self.days[used_days[0]].arrays.items()
            return Examples.of({name: array.take(local, axis=0) for name, array in arrays})
        gathered = {
            name: np.empty((len(rows), *array.shape[1:]), array.dtype)
            for name, array in self.days[0].arrays.items()
        }
        for number in used_days:
            places = np.flatnonzero(days == number)
            local = rows[places] - self._starts[number]
            for name, array in self.days[number].arrays.items():
                gathered[name][places] = array.take(local, axis=0)
        return Examples.of(gathered)

    @cached_property
    def _starts(self) -> Int64[np.ndarray, " D"]:
        """The first row of each day, and the length of the split."""
        return np.cumsum([0, *map(len, self.days)], dtype=np.int64)


def _widths(examples: Examples) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in examples.arrays.items()}


@dataclass(frozen=True)
class Dataset:
    """The three splits of a data set and the shapes that a model needs.

    Attributes:
        train: examples that parameters are fitted to.
        validation: examples that choose between models.
        test: examples that are used once, at the end.
        table_rows: rows of each categorical feature's table; ids lie in [0, rows).
        bag_lengths: ids per example of each categorical feature, padding included.
        fingerprint: hash of the data and of the options of its preparation. Two data sets with the
            same fingerprint hold the same arrays.
        source: description of the examples' origin, one line.
        teacher_auc: AUC of the true probabilities by split, for generated data. No model beats it
            except by luck; NaN where a split has one class only.
        directory: directory of the vocabularies that made the ids; None if they are unknown.
        earlier_fingerprints: fingerprints that earlier versions gave the same data.
        id_ranges: smallest and largest id of each categorical feature in all splits, or wider
            ranges; None if nobody has looked for them.
        columns: names of the categorical features; C1, C2, … if none are given, as Criteo's are.
        shared: columns whose ids are those of another column, by name: both read one table.
        kept_negatives: share of the examples of label 0 that preparation has kept, by split; 1 for
            a split that isn't named.
        labels: names of the labels, the main one first.

    Raises:
        UserError: the splits don't fit each other or the features.
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
    earlier_fingerprints: tuple[str, ...] = ()
    id_ranges: list[list[int]] | None = None
    columns: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    kept_negatives: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ("label",)

    def __repr__(self) -> str:
        """One line, without the examples."""
        sizes = ", ".join(f"{name} {len(split):,}" for name, split in self.splits.items())
        return f"Dataset({sizes}; {len(self.table_rows)} tables; {self.source})"

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", numbered(len(self.table_rows)))
        check_names("Dataset.columns", self.columns, len(self.table_rows))
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
        if not self.labels or len({*self.labels}) < len(self.labels):
            raise UserError(f"Dataset.labels: expected different names, got {self.labels}")
        for name, split in self.splits.items():
            if split.labels_per_example != len(self.labels):
                raise UserError(
                    f"every split needs {len(self.labels)} labels an example "
                    f"({', '.join(self.labels)}), but {name} has {split.labels_per_example}."
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
