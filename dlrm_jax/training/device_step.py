"""A train step whose loss is that of all samples of a device together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int32

from dlrm_jax.training import dense_update
from dlrm_jax.training.learner import Learner, TrainState

DeviceStep = Callable[[TrainState, Any], tuple[TrainState, Float[Array, ""]]]

Sums = tuple[Float[Array, ""], Float[Array, ""]]


def make_device_step(
    learner: Learner,
    ids_of: Callable[[Any], Int32[Array, "B C"]],
    loss_of: Callable[[Any, Any, Any], Sums],
) -> DeviceStep:
    """Makes the train step: ``state, loss = step(state, batch)``, compiled once.

    `step.make_train_step` is for models that give a logit for each row of a batch. Here the model
    may be called in any way: with rows that are packed sequences, or compared with each other and,
    by collectives, with those of other devices. The old state is donated. The loss is the mean over
    all devices, by weight, before the update.

    Args:
        learner: learner of the model.
        ids_of: function of a batch that gives the ids of all its samples, [B, C].
        loss_of: function of the model, the looked-up vectors of one device's samples and its part
            of the batch, in a `jax.shard_map`. It gives Σ wᵢ lossᵢ and Σ wᵢ.
    """
    collection, axes = learner.collection, learner.axes

    def of_device(params: Any, model_state: Any, step: Any, pooled: Any, batch: Any) -> Any:
        """Σ wᵢ, Σ wᵢ lossᵢ over the samples of one device, and the gradients."""

        def loss(params: Any, pooled: Any) -> Sums:
            return loss_of(learner.model(params, model_state, True, step), pooled, batch)

        graded = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (own, weights), (grads, cotangents) = graded(params, pooled)
        sums = weights, own, grads
        return jax.tree.map(lambda x: x[None, None], sums), cotangents

    whole = PartitionSpec()
    on_each = jax.shard_map(
        of_device,
        mesh=learner.mesh,
        in_specs=(whole, whole, whole, axes.batch, axes.batch),
        out_specs=(axes.per_device, axes.batch),
        check_vma=False,
    )

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Float[Array, ""]]:
        pooled, routed = collection.lookup(state.embedding, ids_of(batch))
        sums, cotangents = on_each(state.params, state.model_state, state.step, pooled, batch)
        total, loss, grads = dense_update.sum_over_devices(learner, sums)
        rows = collection.coalesce(collection.send_cotangents(routed, cotangents))
        grads = jax.tree.map(lambda g: g / total, grads)
        params, optimizer = dense_update.update(learner, state, grads)
        embedding = collection.apply(state.embedding, rows.scaled(1 / total), state.step)
        after = TrainState(state.step + 1, params, optimizer, embedding, state.model_state)
        return after, loss / total

    return learner.jit(step, donate_argnames="state")
