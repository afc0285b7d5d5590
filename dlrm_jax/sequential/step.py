"""The jitted step of sequences: each token's target must win against the candidates."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from dlrm_jax.attention.jagged import Sequences, sequences_of
from dlrm_jax.sequential.model import CANDIDATES, ITEMS, TARGETS
from dlrm_jax.sequential.packing import SequenceBatch
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.sequential.softmax import Candidates, softmax_loss
from dlrm_jax.training.device_step import DeviceStep, Sums, make_device_step
from dlrm_jax.training.learner import Learner


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


def make_sequential_step(learner: Learner, settings: SequentialSettings) -> DeviceStep:
    """Makes the train step: ``state, loss = step(state, batch)``; see `make_device_step`.

    The loss is the mean over the tokens of the global batch. It is the same on every mesh but for
    rounding.

    Args:
        learner: learner of `model.learner_for`.
        settings: settings of the run.
    """
    axes, negatives = learner.axes, bool(settings.negatives)

    def loss_of(model: Any, pooled: Any, batch: SequenceBatch) -> Sums:
        histories = model.histories(tokens_of(pooled[ITEMS]), packed(batch))
        candidates = Candidates(
            model.items(tokens_of(pooled[CANDIDATES])),
            batch.candidates.reshape(-1),
            batch.log_q.reshape(-1),
        )
        own, targets = None, batch.targets.reshape(-1)
        if settings.is_sampled:
            of_targets = candidates.vectors
            if negatives:
                of_targets = model.items(tokens_of(pooled[TARGETS]))
            own = (histories * of_targets).sum(1) / settings.temperature
        losses = softmax_loss(histories, targets, own, candidates, settings.temperature, axes.split)
        weights = batch.sample_weights.reshape(-1)
        return jnp.sum(jnp.where(weights > 0, weights * losses, 0)), jnp.sum(weights)

    return make_device_step(learner, lambda batch: ids_of(batch, negatives), loss_of)
