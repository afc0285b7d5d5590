"""The vectors of users and items, a batch at a time."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.retrieval.columns import Side
from dlrm_jax.signals import check
from dlrm_jax.training.learner import Learner, TrainState


class Encoder:
    """Makes the vectors of one side; what the model reads of the other is absent.

    Args:
        learner: learner of a `TwoTower`.
        tower: tower of the side.
        user: side of the user.
        item: side of the item.
        batch_size: vectors that are made at a time, over all devices.
    """

    def __init__(
        self,
        learner: Learner,
        tower: Literal["user", "item"],
        user: Side,
        item: Side,
        batch_size: int,
    ):
        self._learner, self._batch_size = learner, batch_size
        is_user = tower == "user"
        self._dense_before = 0 if is_user else len(user.dense)
        self._ids_before = 0 if is_user else len(user.places)
        self._widths = len(user.dense) + len(item.dense), len(user.places) + len(item.places)

        def of_batch(state: TrainState, dense: Array, ids: Array) -> Float[Array, "n d"]:
            pooled, _ = learner.collection.lookup(state.embedding, ids)
            return getattr(learner.model(state.params), tower)(dense, pooled)

        self._compiled = learner.jit(of_batch, out_shardings=learner.replicated)

    def __call__(
        self, state: TrainState, dense: Float32[np.ndarray, "n D"], ids: Int32[np.ndarray, "n C"]
    ) -> Float32[np.ndarray, "n d"]:
        """The vectors of users or items with these dense features and ids of the side."""
        vectors, size = [], self._batch_size
        for start in range(0, len(ids), size):
            check()
            own = slice(start, min(start + size, len(ids)))
            placed = self._learner.put_evaluation((  # pyright: ignore[reportArgumentType]
                _padded(dense[own], size, self._dense_before, self._widths[0], 0),
                _padded(ids[own], size, self._ids_before, self._widths[1], ABSENT),
            ))  # fmt: skip
            vectors.append(np.asarray(self._compiled(state, *placed))[: own.stop - start])
        return np.concatenate(vectors)


def _padded(array: np.ndarray, rows: int, before: int, width: int, value: int) -> np.ndarray:
    """The array as a part of one of so many rows and columns, with a value in all other places."""
    whole = np.full((rows, width), value, array.dtype)
    whole[: len(array), before : before + array.shape[1]] = array
    return whole
