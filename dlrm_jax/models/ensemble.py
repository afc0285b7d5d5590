"""Models whose logit is the mean of the logits of several members."""

from __future__ import annotations

import abc

import jax.numpy as jnp
from jaxtyping import Array, Float

from dlrm_jax.models.fields import Model, Vectors


class Ensemble(Model):
    """The mean of the logits of P members, networks side by side.

    In training, a loss may look at the logits of each member, see `training.member_losses`.

    Attributes:
        size: P.
    """

    size: int

    @abc.abstractmethod
    def members(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B P"]:
        """Returns the logits of each member."""

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        return jnp.mean(self.members(dense, vectors), axis=1)
