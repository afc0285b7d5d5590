"""Factorization machines (Rendle, "Factorization Machines", ICDM 2010)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.models.fields import (
    SMALL_VECTOR,
    WEIGHT,
    Field,
    FieldVectors,
    FirstOrder,
    Model,
    Read,
    Vectors,
)


@jax.named_scope("interaction")
def pairs(fields: Float[Array, "B F d"]) -> Float[Array, " B"]:
    """Σ_{i<j} ⟨vᵢ, vⱼ⟩ in linear time: ½ Σ_d ((Σᵢ vᵢ)² - Σᵢ vᵢ²); lemma 3.1 of the paper."""
    square_of_sum = jnp.square(jnp.sum(fields, axis=1))
    sum_of_squares = jnp.sum(jnp.square(fields), axis=1)
    return jnp.sum(square_of_sum - sum_of_squares, axis=1) / 2


class FM(Model):
    """ŷ = b + Σ wᵢ xᵢ + Σ_{i<j} ⟨vᵢ, vⱼ⟩ xᵢ xⱼ.

    The ids of a bag count as one input, their sum; they don't interact with each other. All fields
    have one width d.
    """

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """A weight and a vector for each id."""
        return (SMALL_VECTOR, WEIGHT)

    def __init__(self, dense_features: int, fields: Sequence[Field], *, rngs: nnx.Rngs):
        self.first_order = FirstOrder(dense_features, fields)
        self.field_vectors = FieldVectors(dense_features, fields, rngs=rngs)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        return self.first_order(dense, vectors) + pairs(self.field_vectors(dense, vectors))
