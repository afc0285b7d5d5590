"""Examples and data sets as plain arrays, whatever they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from dlrm_jax.errors import UserError

ABSENT = -1
"""The id of an unused place in a bag; it contributes nothing when the bag is pooled."""

_ROWS_PER_BLOCK = 1 << 16


@dataclass(frozen=True)
class Examples:
    """N labelled examples; the arrays may be memory maps.

    Attributes:
        dense: Features that enter the bottom MLP as they are.
        ids: Embedding rows. The bags of all categorical features lie side by side, so C is the sum
            of the bag lengths; `ABSENT` marks places that aren't used.
        labels: 0 or 1.

    Raises:
        UserError: If an array has another type or rank, or the arrays differ in length.
    """

    dense: Float32[np.ndarray, "N D"]
    ids: Int32[np.ndarray, "N C"]
    labels: Float32[np.ndarray, " N"]

    def __post_init__(self) -> None:
        wanted = {"dense": (np.float32, 2), "ids": (np.int32, 2), "labels": (np.float32, 1)}
        for name, (dtype, rank) in wanted.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != rank:
                raise UserError(
                    f"Examples.{name} must be a {np.dtype(dtype)} array with {rank} axes, got "
                    f"{array.dtype} of shape {array.shape}; convert it first."
                )
        lengths = (len(self.dense), len(self.ids), len(self.labels))
        if len(set(lengths)) > 1:
            raise UserError(
                "Examples need dense, ids and labels of the same length, got "
                f"{lengths[0]}, {lengths[1]} and {lengths[2]}; were they cut at different places?"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Examples:
        """The examples of these rows, without a copy."""
        return Examples(self.dense[rows], self.ids[rows], self.labels[rows])


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

    Raises:
        UserError: If the splits don't fit each other or the features.
    """

    train: Examples
    validation: Examples
    test: Examples
    table_rows: tuple[int, ...]
    bag_lengths: tuple[int, ...]
    fingerprint: str
    source: str
    teacher_auc: Mapping[str, float] | None = None

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
        dense, ids = self.train.dense.shape[1], sum(self.bag_lengths)
        for name, split in self.splits.items():
            if split.dense.shape[1] != dense or split.ids.shape[1] != ids:
                raise UserError(
                    f"every split needs {dense} dense features and {ids} ids an example (the sum "
                    f"of the bag lengths), but {name} has {split.dense.shape[1]} and "
                    f"{split.ids.shape[1]}."
                )

    @property
    def splits(self) -> dict[str, Examples]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def check_ids(
    examples: Examples, table_rows: Sequence[int], bag_lengths: Sequence[int], name: str
) -> None:
    """Checks that every id is `ABSENT` or a row of its table.

    An id out of range wouldn't fail on an accelerator, it would read or update another row.

    Args:
        examples: Ids of shape [N, sum(bag_lengths)].
        table_rows: Rows of each categorical feature's table.
        bag_lengths: Places of each categorical feature in `examples.ids`.
        name: What to call the examples in the message, such as "train".

    Raises:
        UserError: Names the first bad id: row, feature, value.
    """
    if examples.ids.shape[1] != sum(bag_lengths) or len(table_rows) != len(bag_lengths):
        raise UserError(
            f"{name}: {len(table_rows)} tables with bags of {sum(bag_lengths)} ids in all don't "
            f"describe examples with {examples.ids.shape[1]} ids each."
        )
    feature_of_column = np.repeat(np.arange(len(table_rows)), bag_lengths)
    limits = np.asarray(table_rows, np.int64)[feature_of_column]
    for start in range(0, len(examples), _ROWS_PER_BLOCK):
        block = np.asarray(examples.ids[start : start + _ROWS_PER_BLOCK])
        if (block.min(axis=0) >= ABSENT).all() and (block.max(axis=0) < limits).all():
            continue
        row, column = np.argwhere((block < ABSENT) | (block >= limits))[0]
        feature = feature_of_column[column]
        raise UserError(
            f"{name}, row {start + row} (from 0), categorical feature {feature} (from 0): expected "
            f"an id from 0 to {limits[column] - 1}, or {ABSENT} for an absent one, got "
            f"{block[row, column]}. Correct the ids, or give this feature a table with more rows."
        )
