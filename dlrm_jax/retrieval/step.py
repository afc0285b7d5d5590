"""The jitted step of retrieval: the items of all devices are the candidates of every user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from dlrm_jax.retrieval.batches import RetrievalBatch
from dlrm_jax.retrieval.softmax import sampled_softmax
from dlrm_jax.training import dense_update
from dlrm_jax.training.learner import Learner, TrainState

RetrievalStep = Callable[[TrainState, RetrievalBatch], tuple[TrainState, Float[Array, ""]]]


def make_retrieval_step(learner: Learner, positives: int) -> RetrievalStep:
    """Makes the train step: ``state, loss = step(state, batch)``, compiled once.

    The old state is donated. The loss is the mean over the users of the global batch, by the
    weights of their rows, before the update. It is the same on every mesh but for rounding: item
    vectors are gathered over all devices, users stay where they are.

    Args:
        learner: learner of a `TwoTower`.
        positives: number of users, B, of a batch over all devices; what else the batch has are
            negatives, see `RetrievalBatch`.
    """
    collection, axes = learner.collection, learner.axes
    count = positives // axes.device_count

    def of_device(params: Any, pooled: Any, batch: RetrievalBatch) -> Any:
        """Σ wᵢ, Σ wᵢ lossᵢ over the users of one device, and the gradients."""
        weights = batch.sample_weights[:count]
        first = jax.lax.axis_index(axes.split) * len(batch.items)
        items = jax.lax.all_gather(batch.items, axes.split, tiled=True)
        log_q = jax.lax.all_gather(batch.log_q, axes.split, tiled=True)

        def loss_of(params: Any, pooled: Any) -> Float[Array, ""]:
            towers = learner.model(params)
            of_users = jax.tree.map(lambda x: x[:count], pooled)
            users = towers.user(batch.dense[:count], of_users)
            vectors = towers.item(batch.dense, pooled)
            candidates = jax.lax.all_gather(vectors, axes.split, tiled=True)
            scores = jnp.matmul(users, candidates.T, precision=jax.lax.Precision.HIGHEST)
            own = first + jnp.arange(count)
            losses = sampled_softmax(scores / towers.softmax_temperature, own, items, log_q)
            return jnp.sum(weights * losses)

        # A device's item vectors are candidates of all: the transpose of the gather adds up what
        # the others' losses say of them.
        loss, (grads, cotangents) = jax.value_and_grad(loss_of, argnums=(0, 1))(params, pooled)
        sums = jnp.sum(weights), loss, grads
        return jax.tree.map(lambda x: x[None, None], sums), cotangents

    on_each = jax.shard_map(
        of_device,
        mesh=learner.mesh,
        in_specs=(PartitionSpec(), axes.batch, axes.batch),
        out_specs=(axes.per_device, axes.batch),
        check_vma=False,
    )

    def step(state: TrainState, batch: RetrievalBatch) -> tuple[TrainState, Float[Array, ""]]:
        pooled, residuals = collection.lookup(state.embedding, batch.ids)
        sums, cotangents = on_each(state.params, pooled, batch)
        total, loss, grads = dense_update.sum_over_devices(learner, sums)
        rows = collection.coalesce(collection.send_cotangents(residuals, cotangents))
        grads = jax.tree.map(lambda g: g / total, grads)
        params, optimizer = dense_update.update(learner, state, grads)
        embedding = collection.apply(state.embedding, rows.scaled(1 / total), state.step)
        after = TrainState(state.step + 1, params, optimizer, embedding, state.model_state)
        return after, loss / total

    return jax.jit(step, donate_argnames="state")
