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
from dlrm_jax.mesh import compiler_options
from dlrm_jax.training.learner import Learner, TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Float[Array, ""]]]
Predict = Callable[[TrainState, Batch], Float[Array, " B"]]

# What a CPU's dense model works on at a time: the activations of more samples fall out of its
# caches. On two cores, the step of the Kaggle preset took 35.5 to 37.5 instead of 39.5 to 41 ms at
# 2048 samples in chunks of 1024, and 145 instead of 163 at 8192, 153 in chunks of 512 or 2048; the
# other presets' didn't change. Predictions of 8192 samples took 46 instead of 52.
_CHUNK = 1024
_PREDICTED_CHUNK = 2048  # no activations are kept for a way back


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
        with jax.named_scope("optimizer"):
            updates, optimizer = learner.dense_optimizer.update(
                grads, state.optimizer, state.params
            )
            params = optax.apply_updates(state.params, updates)
        embedding = collection.apply(state.embedding, rows, state.step)
        return TrainState(state.step + 1, params, optimizer, embedding), loss

    return jax.jit(
        train_step, donate_argnames="state", compiler_options=compiler_options(learner.mesh)
    )


def make_predict(learner: Learner) -> Predict:
    """The prediction: ``logits = predict(state, batch)``; reads no optimizer state."""

    def predict(state: TrainState, batch: Batch) -> Float[Array, " B"]:
        pooled, _ = learner.collection.lookup(state.embedding, batch.ids, batch.id_weights)
        model = learner.model(state.params)
        chunks = _chunks(learner, batch, _PREDICTED_CHUNK)
        if chunks == 1:
            return model(batch.dense, pooled)
        split = _split((batch.dense, pooled), chunks)
        return jax.lax.map(lambda chunk: model(*chunk), split).reshape(-1)

    return jax.jit(
        predict, out_shardings=learner.replicated, compiler_options=compiler_options(learner.mesh)
    )


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
        with jax.named_scope("loss"):
            return jnp.sum(micro.weights * learner.loss(logits, micro.labels)) / total

    def gradients(micro: Batch) -> tuple[Float[Array, ""], Any, Occurrences]:
        # Lookups stay outside of autodiff, whose gradient of a table is as large as the table.
        pooled, context = collection.lookup(state.embedding, micro.ids, micro.id_weights)
        loss, grads, cotangents = chunked(pooled, micro)
        return loss, grads, collection.back(context, cotangents)

    def chunked(pooled: Any, micro: Batch) -> tuple[Float[Array, ""], Any, Any]:
        value_and_grad = jax.value_and_grad(loss_of, argnums=(0, 1))
        chunks = _chunks(learner, micro, _CHUNK)
        if chunks == 1:
            loss, (grads, cotangents) = value_and_grad(state.params, pooled, micro)
            return loss, grads, cotangents

        def add(carry: Any, chunk: Any) -> tuple[Any, Any]:
            loss, (grads, cotangents) = value_and_grad(state.params, *chunk)
            return jax.tree.map(jnp.add, carry, (loss, grads)), cotangents

        (loss, grads), cotangents = jax.lax.scan(add, zero, _split((pooled, micro), chunks))
        return loss, grads, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), cotangents)

    zero = (jnp.zeros((), total.dtype), jax.tree.map(jnp.zeros_like, state.params))
    if learner.accumulation_steps == 1:
        return gradients(batch)

    def add(carry: Any, micro: Batch) -> tuple[Any, Occurrences]:
        loss, grads, occurrences = gradients(micro)
        return jax.tree.map(jnp.add, carry, (loss, grads)), occurrences

    # XLA aborts now and then when emulated devices repeat a collective in a loop.
    emulated = learner.mesh.devices.flat[0].platform == "cpu"
    (loss, grads), occurrences = jax.lax.scan(add, zero, batch, unroll=emulated)
    return loss, grads, occurrences


def _chunks(learner: Learner, batch: Batch, size: int) -> int:
    """How many parts the dense model works through a batch in, one after the other.

    One wherever there are collectives in it, which must not be repeated in a loop of emulated
    devices; the samples of each device are fewer there anyway.
    """
    samples = batch.dense.shape[0]
    on_one_cpu = learner.mesh.size == 1 and learner.mesh.devices.flat[0].platform == "cpu"
    return samples // size if on_one_cpu and samples and samples % size == 0 else 1


def _split(tree: Any, chunks: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(chunks, len(x) // chunks, *x.shape[1:]), tree)


def _squared_norm(tree: Any) -> Float[Array, ""]:
    return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), jnp.zeros(()))
