"""Training batches of retrieval: positive rows, and negatives drawn from all items."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.order import ShuffledOrder
from dlrm_jax.errors import UserError
from dlrm_jax.retrieval.task import Task

_NEGATIVES = 0x6E6567
"""First part of the seeds of negatives, which sets them apart from those of the order."""


class RetrievalBatch(NamedTuple):
    """B positive examples and N negatives: each of D devices has B/D, then N/D of them.

    Attributes:
        dense: dense features of the user, then of the item, [B + N, D] float32.
        ids: ids of the user, then of the item, [B + N, C] int32. Negatives have no user.
        items: number of the item, [B + N] int32.
        log_q: logarithm of the probability that a place of the batch gets this item, by the sampler
            that drew it, [B + N] float32.
        sample_weights: weights of the examples, [B + N] float32; 0 for negatives.
    """

    dense: Any
    ids: Any
    items: Any
    log_q: Any
    sample_weights: Any


class RetrievalBatches:
    """The endless sequence of training batches, indexed by the step, see `TrainBatches`.

    Args:
        task: task with the training rows.
        config: config of the run, with batch size B, seed and shuffle window.
        devices: number of devices, which divides B and N.

    Raises:
        UserError: there are fewer rows than a batch has.
    """

    def __init__(self, task: Task, config: Config, devices: int):
        self.batch_size, rows = config.batch_size, len(task.train)
        if rows < self.batch_size:
            raise UserError(
                f"batch_size: expected at most the {rows:,} training rows with label 1 and an "
                f"item, got {self.batch_size:,}"
            )
        self.steps_per_epoch = rows // self.batch_size
        self._task, self._items, self._devices = task, task.items, devices
        self._seed, self._negatives = config.seed, task.settings.negatives
        self._order = ShuffledOrder(rows, config.shuffle_window, config.seed)
        shares = task.items.probabilities(task.settings.sampler)
        self._up_to = np.cumsum(shares)
        self._log_share = np.log(shares).astype(np.float32)

    def __getitem__(self, step: int) -> RetrievalBatch:
        """The batch of a global step, from 0."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.batch_size
        places = self._order.rows(epoch, start, start + self.batch_size)
        positive = self._positive(places)
        if not self._negatives:
            return positive
        negative = self._negative(step)
        return RetrievalBatch(*map(self._interleaved, positive, negative))

    def _positive(self, places: Int64[np.ndarray, " B"]) -> RetrievalBatch:
        user, item, train = self._task.user, self._task.item, self._task.train
        examples, numbers = train.split.take(train.rows[places]), train.chosen[places]
        weights = examples.sample_weights
        return RetrievalBatch(
            dense=np.hstack([user.dense_of(examples), item.dense_of(examples)]),
            ids=np.hstack([user.ids(examples), item.ids(examples)]),
            items=numbers.astype(np.int32),
            log_q=self._items.log_q[numbers],
            sample_weights=np.ones(len(places), np.float32) if weights is None else weights,
        )

    def _negative(self, step: int) -> RetrievalBatch:
        draws = np.random.default_rng([_NEGATIVES, self._seed, step]).random(self._negatives)
        drawn = np.searchsorted(self._up_to, draws * self._up_to[-1], side="right")
        count = len(drawn)
        dense = np.zeros((count, len(self._task.user.dense)), np.float32)
        ids = np.full((count, len(self._task.user.places)), ABSENT, np.int32)
        return RetrievalBatch(
            dense=np.hstack([dense, self._items.dense[drawn]]),
            ids=np.hstack([ids, self._items.ids[drawn]]),
            items=drawn.astype(np.int32),
            log_q=self._log_share[drawn],
            sample_weights=np.zeros(count, np.float32),
        )

    def _interleaved(self, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """Each device's positives, followed by its negatives."""
        parts = [np.split(x, self._devices) for x in (positive, negative)]
        return np.concatenate([part for both in zip(*parts, strict=True) for part in both])
