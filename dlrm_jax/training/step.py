"""The jitted functions: one train step, one prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding.state import Occurrences
from dlrm_jax.training.learner import Learner, TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Float[Array, ""]]]
Predict = Callable[[TrainState, Batch], Float[Array, " B"]]


def make_train_step(learner: Learner) -> TrainStep:
    """The train step: ``state, loss = step(state, batch)``, compiled once.

    The old state is donated: its tables are updated in place and it must not be used again.
    The loss is that of the batch before the update, averaged with the examples' weights.
    """
    collection, clip_norm = learner.collection, learner.clip_norm

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Float[Array, ""]]:
        loss, grads, occurrences = _accumulate(learner, state, batch)
        rows = collection.aggregate(occurrences, sum_duplicates=bool(clip_norm))
        if clip_norm:
            # One norm over dense parameters and touched rows: equal to the norm over whole
            # tables, whose other rows have gradient zero.
            norm = jnp.sqrt(_squared_norm(grads) + rows.squared_norm())
            factor = jnp.minimum(1, clip_norm / norm)
            grads, rows = jax.tree.map(lambda g: g * factor, grads), rows.scaled(factor)
        updates, optimizer = learner.dense_optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        embedding = collection.apply(state.embedding, rows, state.step)
        return TrainState(state.step + 1, params, optimizer, embedding), loss

    return jax.jit(train_step, donate_argnames="state")


def make_predict(learner: Learner) -> Predict:
    """The prediction: ``logits = predict(state, batch)``; reads no optimizer state."""

    def predict(state: TrainState, batch: Batch) -> Float[Array, " B"]:
        pooled, _ = learner.collection.lookup(state.embedding, batch.ids, batch.id_weights)
        return learner.model(state.params)(batch.dense, pooled)

    return jax.jit(predict, out_shardings=learner.replicated)


def _accumulate(
    learner: Learner, state: TrainState, batch: Batch
) -> tuple[Float[Array, ""], Any, Occurrences]:
    """Loss and gradients of the batch, whole or one micro-batch after the other.

    Micro-batches differ from the whole batch in the order of summation alone: the loss is
    divided by the weight of the whole, and rows are aggregated over all of it.
    """
    collection = learner.collection
    total = jnp.sum(batch.weights)

    def loss_of(params: Any, pooled: Any, micro: Batch) -> Float[Array, ""]:
        logits = learner.model(params)(micro.dense, pooled)
        return jnp.sum(micro.weights * learner.loss(logits, micro.labels)) / total

    def gradients(micro: Batch) -> tuple[Float[Array, ""], Any, Occurrences]:
        # Lookups stay outside of autodiff, whose gradient of a table is as large as the table.
        pooled, context = collection.lookup(state.embedding, micro.ids, micro.id_weights)
        loss, (grads, cotangents) = jax.value_and_grad(loss_of, argnums=(0, 1))(
            state.params, pooled, micro
        )
        return loss, grads, collection.back(context, cotangents)

    if learner.accumulation_steps == 1:
        return gradients(batch)

    def add(carry: Any, micro: Batch) -> tuple[Any, Occurrences]:
        loss, grads, occurrences = gradients(micro)
        return jax.tree.map(jnp.add, carry, (loss, grads)), occurrences

    zero = (jnp.zeros((), total.dtype), jax.tree.map(jnp.zeros_like, state.params))
    # XLA aborts now and then when emulated devices repeat a collective in a loop.
    emulated = learner.mesh.devices.flat[0].platform == "cpu"
    (loss, grads), occurrences = jax.lax.scan(add, zero, batch, unroll=emulated)
    return loss, grads, occurrences


def _squared_norm(tree: Any) -> Float[Array, ""]:
    return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), jnp.zeros(()))
