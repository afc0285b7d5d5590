"""The jitted step of sequences: each token's target must win against the candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int32

from dlrm_jax.models.jagged import Sequences, sequences_of
from dlrm_jax.sequential.model import CANDIDATES, ITEMS, TARGETS
from dlrm_jax.sequential.packing import SequenceBatch
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.sequential.softmax import Candidates, softmax_loss
from dlrm_jax.training import dense_update
from dlrm_jax.training.learner import Learner, TrainState

SequentialStep = Callable[[TrainState, SequenceBatch], tuple[TrainState, Float[Array, ""]]]


def ids_of(batch: SequenceBatch, negatives: bool) -> Int32[Array, "B C"]:
    """The id array of a batch, [B, C].

    Args:
        batch: batch.
        negatives: whether the candidates are drawn, and targets looked up for themselves.
    """
    parts = [batch.items, batch.candidates, *([batch.targets] if negatives else [])]
    return jnp.concatenate(parts, axis=1)


def packed(batch: SequenceBatch) -> Sequences:
    """The sequences of one device's part of a batch."""
    lengths, times, following, numbers = batch.lengths, batch.times, batch.next_times, batch.numbers
    flat = times.reshape(-1), following.reshape(-1), numbers.reshape(-1)
    return sequences_of(lengths, times.size, *flat)


def tokens_of(vectors: Float[Array, "b K d"]) -> Float[Array, "T d"]:
    """The vectors of one device's tokens, [T, d]."""
    return vectors.reshape(-1, vectors.shape[-1])


def make_sequential_step(learner: Learner, settings: SequentialSettings) -> SequentialStep:
    """Makes the train step: ``state, loss = step(state, batch)``, compiled once.

    The old state is donated. The loss is the mean over the tokens of the global batch, before the
    update. It is the same on every mesh but for rounding.

    Args:
        learner: learner of `model.learner_for`.
        settings: settings of the run.
    """
    collection, axes, negatives = learner.collection, learner.axes, bool(settings.negatives)

    def of_device(params: Any, model_state: Any, step: Any, pooled: Any, batch: Any) -> Any:
        """Σ wᵢ, Σ wᵢ lossᵢ over the tokens of one device, and the gradients."""
        sequences, weights = packed(batch), batch.sample_weights.reshape(-1)
        targets = batch.targets.reshape(-1)

        def loss_of(params: Any, pooled: Any) -> Float[Array, ""]:
            model = learner.model(params, model_state, True, step)
            histories = model.histories(tokens_of(pooled[ITEMS]), sequences)
            candidates = Candidates(
                model.items(tokens_of(pooled[CANDIDATES])),
                batch.candidates.reshape(-1),
                batch.log_q.reshape(-1),
            )
            own = None
            if settings.is_sampled:
                of_targets = candidates.vectors
                if negatives:
                    of_targets = model.items(tokens_of(pooled[TARGETS]))
                own = (histories * of_targets).sum(1) / settings.temperature
            losses = softmax_loss(
                histories, targets, own, candidates, settings.temperature, axes.split
            )
            return jnp.sum(jnp.where(weights > 0, weights * losses, 0))

        loss, (grads, cotangents) = jax.value_and_grad(loss_of, argnums=(0, 1))(params, pooled)
        sums = jnp.sum(weights), loss, grads
        return jax.tree.map(lambda x: x[None, None], sums), cotangents

    whole = PartitionSpec()
    on_each = jax.shard_map(
        of_device,
        mesh=learner.mesh,
        in_specs=(whole, whole, whole, axes.batch, axes.batch),
        out_specs=(axes.per_device, axes.batch),
        check_vma=False,
    )

    def step(state: TrainState, batch: SequenceBatch) -> tuple[TrainState, Float[Array, ""]]:
        pooled, routed = collection.lookup(state.embedding, ids_of(batch, negatives))
        sums, cotangents = on_each(state.params, state.model_state, state.step, pooled, batch)
        total, loss, grads = dense_update.sum_over_devices(learner, sums)
        rows = collection.coalesce(collection.send_cotangents(routed, cotangents))
        grads = jax.tree.map(lambda g: g / total, grads)
        params, optimizer = dense_update.update(learner, state, grads)
        embedding = collection.apply(state.embedding, rows.scaled(1 / total), state.step)
        after = TrainState(state.step + 1, params, optimizer, embedding, state.model_state)
        return after, loss / total

    return jax.jit(step, donate_argnames="state")
