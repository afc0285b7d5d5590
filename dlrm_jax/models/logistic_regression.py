"""Logistic regression, the baseline without interactions."""

from __future__ import annotations

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.models.fields import WEIGHT, Field, FirstOrder, Model, Read, Vectors


class LogisticRegression(Model):
    """ŷ = Σ wᵢ xᵢ + b, over ids and dense features. All weights start from 0."""

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """A weight for each id."""
        return (WEIGHT,)

    def __init__(self, dense_features: int, fields: Sequence[Field], *, rngs: nnx.Rngs):
        self.first_order = FirstOrder(dense_features, fields)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        return self.first_order(dense, vectors)
