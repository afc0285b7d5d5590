"""Ids replaced by that of unseen values: some to train its row, and later ones for an old model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32

from dlrm_jax.data.arrays import ABSENT, Dataset
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.special_ids import FIRST_VALUE, UNSEEN
from dlrm_jax.errors import UserError

_STREAM = 0x756E  # apart from other numbers that are drawn from the seed


class UnseenIds:
    """Replaces a share of the known ids of each batch; missing values, absent ids and bins stay.

    What is replaced depends on seed and step alone, so a resumed run and any number of processes
    replace the same.

    Args:
        rate: probability of each known id.
        seed: seed of the choices.
        has_unseen: whether a column of ids has unseen values; without it, all have.
    """

    def __init__(
        self, rate: float, seed: int, has_unseen: Bool[np.ndarray, " C"] | Literal[True] = True
    ):
        self._rate = rate
        self._seed = seed
        self._has_unseen = has_unseen

    def __call__(
        self, ids: Int32[np.ndarray, "b C"], step: int, own: slice, batch_size: int
    ) -> Int32[np.ndarray, "b C"]:
        """The ids of a process's examples.

        Args:
            ids: ids of these examples.
            step: step of the batch, from 0.
            own: places of the examples in the batch.
            batch_size: examples of the batch, over all processes.
        """
        drawn = np.random.default_rng([_STREAM, self._seed, step])
        chosen = drawn.random((batch_size, ids.shape[1]), np.float32)[own] < self._rate
        replaced = chosen & (ids >= FIRST_VALUE) & self._has_unseen
        return np.where(replaced, np.int32(UNSEEN), ids)


class EarlierIds:
    """Gives the ids of vocabularies that have grown since, whose later values were unseen.

    Where rows were shared already, as ``max_rows`` made them, later values that share them stay.
    Of a bag that is longer now, the ids that were kept then stay.

    Args:
        table_rows: rows of each column's table then.
        earlier_lengths: ids per example of each column then.
        bag_lengths: ids per example of each column in the ids that are given.
    """

    def __init__(
        self,
        table_rows: Sequence[int],
        earlier_lengths: Sequence[int],
        bag_lengths: Sequence[int],
    ):
        self._ends = np.repeat(table_rows, bag_lengths)
        places = [place for length in bag_lengths for place in range(length)]
        self._is_cut = np.array(places) >= np.repeat(earlier_lengths, bag_lengths)

    def __call__(self, ids: Int32[np.ndarray, "b C"]) -> Int32[np.ndarray, "b C"]:
        """The ids that these examples had."""
        known = np.where(ids < self._ends, ids, np.int32(UNSEEN))
        return np.where(self._is_cut, np.int32(ABSENT), known)


def unseen_ids(data: Dataset, rate: float, seed: int) -> UnseenIds | None:
    """What replaces ids of these data; None at a rate of 0.

    Raises:
        UserError: no id of the data stands for unseen values.
    """
    if not rate:
        return None
    metadata = Metadata.read(data.directory) if data.directory else None
    options = metadata.made_from["options"] if metadata else {}
    if metadata is None or options.get("compatible") or options.get("multi_hot_sizes"):
        raise UserError(
            f"unseen_rate: expected data of python -m dlrm_jax preprocess with its own ids, 0 of "
            f"which stands for unseen values, got {rate} for {data.source}; leave it out"
        )
    # A number lies in a bin, whatever it is.
    has_unseen = [name not in metadata.bins for name in metadata.columns]
    return UnseenIds(rate, seed, np.repeat(has_unseen, metadata.bag_lengths))
