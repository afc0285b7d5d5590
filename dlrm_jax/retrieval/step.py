"""The jitted step of retrieval: the items of all devices are the candidates of every user."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dlrm_jax.retrieval.batches import RetrievalBatch
from dlrm_jax.retrieval.softmax import sampled_softmax
from dlrm_jax.training.device_step import DeviceStep, Sums, make_device_step
from dlrm_jax.training.learner import Learner


def make_retrieval_step(learner: Learner, positives: int) -> DeviceStep:
    """Makes the train step: ``state, loss = step(state, batch)``; see `make_device_step`.

    The loss is the mean over the users of the global batch, by the weights of their rows. It is the
    same on every mesh but for rounding: item vectors are gathered over all devices, users stay
    where they are.

    Args:
        learner: learner of a `TwoTower`.
        positives: number of users, B, of a batch over all devices; what else the batch has are
            negatives, see `RetrievalBatch`.
    """
    axes, count = learner.axes, positives // learner.axes.device_count

    def loss_of(towers: Any, pooled: Any, batch: RetrievalBatch) -> Sums:
        """Σ wᵢ lossᵢ and Σ wᵢ over the users of one device."""
        weights = batch.sample_weights[:count]
        first = jax.lax.axis_index(axes.split) * len(batch.items)
        items = jax.lax.all_gather(batch.items, axes.split, tiled=True)
        log_q = jax.lax.all_gather(batch.log_q, axes.split, tiled=True)
        of_users = jax.tree.map(lambda x: x[:count], pooled)
        users = towers.user(batch.dense[:count], of_users)
        # A device's item vectors are candidates of all: the transpose of the gather adds up what
        # the others' losses say of them.
        vectors = towers.item(batch.dense, pooled)
        candidates = jax.lax.all_gather(vectors, axes.split, tiled=True)
        scores = jnp.matmul(users, candidates.T, precision=jax.lax.Precision.HIGHEST)
        own = first + jnp.arange(count)
        losses = sampled_softmax(scores / towers.softmax_temperature, own, items, log_q)
        return jnp.sum(weights * losses), jnp.sum(weights)

    return make_device_step(learner, lambda batch: batch.ids, loss_of)
