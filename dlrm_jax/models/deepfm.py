"""DeepFM (arXiv 1703.04247)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import Field, Vectors, common_width, hidden
from dlrm_jax.models.fm import FM, pairs
from dlrm_jax.models.mlp import MLP


class DeepFM(FM):
    """ŷ = FM + deep: an FM, and an MLP over the same vectors (section 2)."""

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        super().__init__(dense_features, fields, rngs=rngs)
        width = (dense_features + len(fields)) * common_width(fields)
        self.deep = MLP((width, *hidden(top_mlp), 1), last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        fields = self.field_vectors(dense, vectors)
        with jax.named_scope("top_mlp"):
            deep = self.deep(fields.reshape(fields.shape[0], -1))[:, 0]
        return self.first_order(dense, vectors) + pairs(fields) + deep
