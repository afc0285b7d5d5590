"""The items of the training rows: their features, their counts, and how negatives are drawn."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from dlrm_jax.data.arrays import Split
from dlrm_jax.data.log_order import Log
from dlrm_jax.errors import UserError
from dlrm_jax.retrieval.columns import Side
from dlrm_jax.retrieval.log_rows import chunks, is_positive, last_rows, take

Sampler = Literal["uniform", "frequency"]


@dataclasses.dataclass(frozen=True)
class Items:
    """All I items, in the order of their ids. An item is an id of its key column.

    Attributes:
        keys: id of each item in the key column.
        ids: ids of its columns in its last training row.
        dense: dense features of its columns in that row.
        rows: number of its training rows.
        positives: number of those with label 1.
        numbers: number of each id's item, from 0; -1 for ids that are no item.
    """

    keys: Int64[np.ndarray, " I"]
    ids: Int32[np.ndarray, "I C"]
    dense: Float32[np.ndarray, "I D"]
    rows: Int64[np.ndarray, " I"]
    positives: Int64[np.ndarray, " I"]
    numbers: Int64[np.ndarray, " R"]

    def __len__(self) -> int:
        return len(self.keys)

    def numbers_of(self, keys: Int32[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        """The numbers of items by id; -1 for an absent id and for one that is no item."""
        return np.where(keys >= 0, self.numbers[np.maximum(keys, 0)], -1)

    @cached_property
    def log_q(self) -> Float32[np.ndarray, " I"]:
        """The logarithm of each item's share of the positive training rows; of the rest, of one.

        This is how likely the item of a positive row is to be in a place of a batch.
        """
        shares = np.maximum(self.positives, 1) / self.positives.sum()
        return np.log(shares).astype(np.float32)

    def probabilities(self, sampler: Sampler) -> Float64[np.ndarray, " I"]:
        """How likely each item is to be drawn as a negative: all alike, or by training rows."""
        weights = np.ones(len(self)) if sampler == "uniform" else self.rows.astype(np.float64)
        return weights / weights.sum()


def find_items(train: Split, side: Side, rows: int, known: Int64[np.ndarray, " k"] | None) -> Items:
    """The items of the training rows.

    Args:
        train: training split.
        side: side of the item.
        rows: number of ids that the key may have.
        known: ids that stand for one value each; others, such as that of missing values, are no
            items. None if all ids are items.

    Raises:
        UserError: no row has a label of 1 and an item.
    """
    last = last_rows(Log.following(train.days), side, rows)
    if known is not None:
        is_known = np.zeros(rows, bool)
        is_known[known] = True
        last[~is_known] = -1
    keys = np.flatnonzero(last >= 0)
    counts, positives = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for _, examples in chunks(train):
        found = side.keys(side.ids(examples))
        counts += np.bincount(found[found >= 0], minlength=rows)
        chosen = found[is_positive(examples)]
        positives += np.bincount(chosen[chosen >= 0], minlength=rows)
    if not positives[keys].sum():
        raise UserError(
            "train: expected rows with label 1 and an item of its own, which are what two towers "
            "learn from, got none"
        )
    # Ascending rows are read; then the items come back into the order of their ids.
    order = np.argsort(last[keys], kind="stable")
    parts = list(take(train, last[keys][order]))
    ids = np.concatenate([side.ids(part) for part in parts])
    dense = np.concatenate([side.dense_of(part) for part in parts])
    back = np.argsort(order, kind="stable")
    numbers = np.full(rows, -1, np.int64)
    numbers[keys] = np.arange(len(keys))
    return Items(keys, ids[back], dense[back], counts[keys], positives[keys], numbers)
