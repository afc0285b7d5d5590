"""The jitted functions of a train step and of a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding.state import RoutedIds, SparseCotangents
from dlrm_jax.training import data_parallel, dense_update
from dlrm_jax.training.label_weights import by_label
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.ranking_losses import RankingLoss

TrainStep = Callable[..., tuple[TrainState, Float[Array, ""]]]
"""A function of state, batch and, if the learning rate is cut on the way, its factor."""

Predict = Callable[[TrainState, Batch], Float[Array, "B *_"]]


def make_train_step(learner: Learner, with_logits: bool = False) -> TrainStep:
    """Makes the train step: ``state, loss = step(state, batch)``, compiled once.

    The old state is donated: its tables are updated in place and it must not be used again.
    The loss is that of the batch before the update, averaged with the examples' weights, without
    penalties; if the weights sum to zero, the loss and the new state are NaN. For several labels
    see `label_weights`. A `RankingLoss` is 0 where nothing can be compared.

    A third argument, a scalar, multiplies the changes of all rows and dense parameters. For the
    optimizers that flags name this is a factor of the learning rate. It may differ from step to
    step without a compilation.

    Args:
        learner: learner of the states.
        with_logits: whether the step also gives the logits that the loss is of, [B] or [B, H]:
            those of the model before the update, as it is in training. Each of several processes
            gets all of them.
    """

    def train_step(
        state: TrainState, batch: Batch, rate_factor: Float[Array, ""] | None = None
    ) -> tuple[Any, ...]:
        routed = route(learner, batch)
        *found, logits = step_with_logits(learner, state, batch, routed, rate_factor, with_logits)
        if not with_logits:
            return tuple(found)
        if len({device.process_index for device in learner.mesh.devices.flat}) > 1:
            logits = jax.lax.with_sharding_constraint(logits, learner.replicated)
        return (*found, logits)

    return learner.jit(train_step, donate_argnames="state")


def route(learner: Learner, batch: Batch) -> RoutedIds:
    """The routed ids of a batch, or those of each micro-batch, stacked along a new first axis."""

    def of_micro_batch(_: None, given: tuple[Any, Any]) -> tuple[None, RoutedIds]:
        return None, learner.collection.route(*given)

    given = batch.ids, batch.id_weights
    if learner.accumulation_steps == 1:
        return of_micro_batch(None, given)[1]
    unroll = learner.backend.unroll_micro_batches
    return jax.lax.scan(of_micro_batch, None, given, unroll=unroll)[1]


def step_routed(
    learner: Learner,
    state: TrainState,
    batch: Batch,
    routed: RoutedIds,
    rate_factor: Float[Array, ""] | None,
) -> tuple[TrainState, Float[Array, ""]]:
    """A train step of a batch after `route`, see `make_train_step`."""
    return step_with_logits(learner, state, batch, routed, rate_factor, with_logits=False)[:2]


def step_with_logits(
    learner: Learner,
    state: TrainState,
    batch: Batch,
    routed: RoutedIds,
    rate_factor: Float[Array, ""] | None,
    with_logits: bool,
) -> tuple[TrainState, Float[Array, ""], Float[Array, "B *_"] | None]:
    """As `step_routed`, with the logits of the batch if they are wanted."""
    collection, clip_norm, penalty = learner.collection, learner.clip_norm, learner.penalty
    any_weight = None
    if len(learner.labels) > 1:
        batch, any_weight = by_label(batch, [*learner.label_weights.values()])
    if dense_update.weight_first(learner):
        # Data have 32 bits, parameters may have 64.
        dtypes = [x.dtype for x in jax.tree.leaves(state.params)]
        weights = batch.sample_weights.astype(jnp.result_type(jnp.float32, *dtypes))
        batch = batch._replace(sample_weights=weights / weights.sum())
    total, loss, grads, sparse_cotangents, model_state, logits = _accumulate(
        learner, state, batch, routed, with_logits
    )
    if any_weight is not None:  # the sums are divided already
        total = any_weight.astype(total.dtype)
    summed = bool(clip_norm or penalty.tables)
    rows = collection.coalesce(sparse_cotangents, sum_duplicates=summed)
    if isinstance(learner.loss, RankingLoss):  # a batch may have nothing to compare
        total = jnp.where(total > 0, total, 1)
    factor = 1 / total
    if penalty:  # beside the mean loss, so that the norm is that of both
        grads, rows = _scaled(grads, factor), rows.scaled(factor)
        grads = penalty.of_params(state.params, grads)
        rows = penalty.of_rows(collection, state.embedding, rows)
        factor = jnp.ones_like(factor)
    if clip_norm:
        # One norm over dense parameters and touched rows: equal to the norm over whole
        # tables, whose other rows have gradient zero.
        norm = factor * jnp.sqrt(_squared_norm(grads) + rows.squared_norm())
        factor *= jnp.minimum(1, clip_norm / norm)
    if clip_norm or not penalty:
        grads, rows = _scaled(grads, factor), rows.scaled(factor)
    params, optimizer = dense_update.update(learner, state, grads, rate_factor)
    embedding = collection.apply(state.embedding, rows, state.step, rate_factor)
    state = TrainState(state.step + 1, params, optimizer, embedding, model_state)
    return state, loss / total, logits


def make_predict(learner: Learner) -> Predict:
    """Makes the prediction ``logits = predict(state, batch)``; it reads no optimizer state.

    They are [B], or [B, H] for H labels.
    """

    def predict(state: TrainState, batch: Batch) -> Float[Array, "B *_"]:
        pooled, _ = learner.collection.lookup(state.embedding, batch.ids, batch.id_weights)
        return data_parallel.logits(learner, state, pooled, batch)

    return learner.jit(predict, out_shardings=learner.replicated)


def _accumulate(
    learner: Learner, state: TrainState, batch: Batch, routed: RoutedIds, with_logits: bool
) -> tuple[Float[Array, ""], Float[Array, ""], Any, SparseCotangents, Any, Any]:
    """Σ wᵢ, Σ wᵢ lossᵢ and its gradients, of the batch whole or one micro-batch after the other.

    The logits come last, or None.

    Micro-batches differ from the whole batch in the order of summation alone, unless the model
    looks at the batch, see `Learner`: rows are coalesced over all of it. The weight is summed with
    the other sums, which are divided by it afterwards, unless `Backend.weight_first`.
    """
    collection, count = learner.collection, learner.accumulation_steps
    # None if nothing reads it.
    first = state.step * count if learner.has_model_state else None

    def gradients(
        model_state: Any, number: Any, micro: Batch, routed: RoutedIds
    ) -> tuple[Any, tuple[SparseCotangents, Any], Any]:
        # Lookups stay outside of autodiff, whose gradient of a table is as large as the table.
        pooled = collection.pool(state.embedding, routed)
        sums, cotangents, model_state, logits = data_parallel.gradients(
            learner, state.params, model_state, number, pooled, micro, with_logits
        )
        return sums, (collection.send_cotangents(routed, cotangents), logits), model_state

    def add(carry: Any, item: Any) -> tuple[Any, tuple[SparseCotangents, Any]]:
        sums, model_state = carry
        found, of_samples, model_state = gradients(model_state, *item)
        return (jax.tree.map(jnp.add, sums, found), model_state), of_samples

    if count == 1:
        sums, of_samples, model_state = gradients(state.model_state, first, batch, routed)
        sparse_cotangents, logits = of_samples
    else:
        numbers = None if first is None else first + jnp.arange(count)
        one = jax.tree.map(lambda x: x[0], (batch, routed))
        shapes, *_ = jax.eval_shape(gradients, state.model_state, first, *one)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        per_device = learner.axes.sharding(learner.axes.per_device)
        zero = jax.lax.with_sharding_constraint(zero, per_device)
        (sums, model_state), (sparse_cotangents, logits) = jax.lax.scan(
            add,
            (zero, state.model_state),
            (numbers, batch, routed),
            unroll=learner.backend.unroll_micro_batches,
        )
        if with_logits:  # of the micro-batches, [A, B/A, ...], each of parts of all P processes
            processes = len({device.process_index for device in learner.mesh.devices.flat})
            logits = logits.reshape(count, processes, -1, *logits.shape[2:])
            logits = logits.swapaxes(0, 1).reshape(-1, *logits.shape[3:])
    if dense_update.weight_first(learner):  # they are divided by their sum
        sums = None, *sums[1:]
    total, loss, grads = dense_update.sum_over_devices(learner, sums)
    total = jnp.ones_like(loss) if total is None else total
    return total, loss, grads, sparse_cotangents, model_state, logits


def _scaled(tree: Any, factor: Float[Array, ""]) -> Any:
    return jax.tree.map(lambda g: (g * factor).astype(g.dtype), tree)


def _squared_norm(tree: Any) -> Float[Array, ""]:
    return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), jnp.zeros(()))
