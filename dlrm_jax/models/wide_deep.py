"""Wide & Deep (arXiv 1606.07792)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import (
    VECTOR,
    WEIGHT,
    Field,
    FirstOrder,
    Model,
    Read,
    Vectors,
    concatenated,
    concatenated_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP


class WideDeep(Model):
    """ŷ = wide + deep: a linear model and an MLP over dense features and vectors (section 3).

    The wide part reads single ids. The crossed features of the paper must be prepared in the data,
    as further fields.
    """

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """A weight and a vector for each id."""
        return (VECTOR, WEIGHT)

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.fields = tuple(fields)
        self.wide = FirstOrder(dense_features, fields)
        widths = (concatenated_width(dense_features, fields), *hidden(top_mlp), 1)
        self.deep = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        with jax.named_scope("top_mlp"):
            deep = self.deep(concatenated(dense, vectors, self.fields))[:, 0]
        return self.wide(dense, vectors) + deep
