"""Losses of logits and labels: one value per sample, which depends on that sample alone."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Loss = Callable[[Float[Array, " B"], Float[Array, " B"]], Float[Array, " B"]]


def bce(logits: Float[Array, " B"], labels: Float[Array, " B"]) -> Float[Array, " B"]:
    """Binary cross-entropy, in nats."""
    return optax.sigmoid_binary_cross_entropy(logits, labels)


def mse(logits: Float[Array, " B"], labels: Float[Array, " B"]) -> Float[Array, " B"]:
    """Squared error of the probability."""
    return jnp.square(jax.nn.sigmoid(logits) - labels)


LOSSES: dict[str, Loss] = {"bce": bce, "mse": mse}


def class_weighted(loss: Loss, negative: float, positive: float) -> Loss:
    """Multiplies a loss by ``negative`` for label 0 and by ``positive`` for label 1."""
    if negative == positive == 1:
        return loss
    return lambda logits, labels: loss(logits, labels) * (negative + (positive - negative) * labels)
