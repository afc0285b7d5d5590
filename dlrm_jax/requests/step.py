"""The jitted step of requests: the cross-entropy of what came of each candidate."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from dlrm_jax.requests.packing import RequestBatch
from dlrm_jax.training.device_step import DeviceStep, Sums, make_device_step
from dlrm_jax.training.learner import Learner


def make_request_step(learner: Learner) -> DeviceStep:
    """Makes the train step: ``state, loss = step(state, batch)``; see `make_device_step`.

    The loss is the mean over the candidates of the global batch. It is the same on every mesh but
    for rounding.

    Args:
        learner: learner of `model.learner_for`.
    """
    return make_device_step(learner, lambda batch: batch.ids, loss_sums)


def loss_sums(model: Any, pooled: Any, batch: RequestBatch) -> Sums:
    """Σ wᵢ lossᵢ and Σ wᵢ over the candidates of one device."""
    weights, labels = batch.sample_weights.reshape(-1), batch.labels.reshape(-1)
    losses = optax.sigmoid_binary_cross_entropy(model(pooled, batch), labels)
    # Logits of filling have no meaning, and may be anything.
    return jnp.sum(jnp.where(weights > 0, weights * losses, 0)), jnp.sum(weights)
