"""AutoInt (arXiv 1810.11921): self-attention between fields."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import Field, FieldVectors, Model, Vectors, common_width


class InteractingLayer(nnx.Module):
    """Multi-head self-attention over fields, with a residual and a ReLU (equations 5 to 8).

    Args:
        width: width of the input vectors.
        heads: number of heads, H.
        head_width: width of a head's vectors.
        rngs: random number generators of the initial values.
    """

    def __init__(self, width: int, heads: int, head_width: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.glorot_normal()

        def matrix() -> nnx.Param:
            return nnx.Param(init(rngs.params(), (width, heads * head_width)))

        self.heads = heads
        self.query, self.key, self.value, self.residual = (matrix() for _ in range(4))

    def __call__(self, x: Float[Array, "B F in"]) -> Float[Array, "B F out"]:
        """Returns F vectors of width H · head_width."""

        def by_head(weight: nnx.Param) -> Float[Array, "B F H a"]:
            return (x @ weight[...]).reshape(*x.shape[:2], self.heads, -1)

        scores = jnp.einsum("bmha,bnha->bhmn", by_head(self.query), by_head(self.key))
        attention = jax.nn.softmax(scores, axis=-1)
        heads = jnp.einsum("bhmn,bnha->bmha", attention, by_head(self.value))
        return jax.nn.relu(heads.reshape(*x.shape[:2], -1) + x @ self.residual[...])


class AutoInt(Model):
    """Interacting layers over the vectors of all fields, and a linear layer to one logit.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d.
        layers: number of interacting layers.
        heads: number of heads of each layer.
        head_width: width of a head's vectors.
        rngs: random number generators of the initial values.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        *,
        layers: int = 2,
        heads: int = 2,
        head_width: int = 16,
        rngs: nnx.Rngs,
    ):
        if min(layers, heads, head_width) < 1:
            raise UserError(
                f"expected at least 1 of layers, heads and head_width, got {layers}, {heads} and "
                f"{head_width}"
            )
        self.field_vectors = FieldVectors(dense_features, fields, rngs=rngs)
        out = heads * head_width
        inputs = [common_width(fields), *[out] * (layers - 1)]
        self.layers = nnx.List(InteractingLayer(w, heads, head_width, rngs=rngs) for w in inputs)
        flat = (dense_features + len(fields)) * out
        self.output = nnx.Param(jax.nn.initializers.glorot_normal()(rngs.params(), (flat, 1)))
        self.bias = nnx.Param(jnp.zeros(()))

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        x = self.field_vectors(dense, vectors)
        with jax.named_scope("interaction"):
            for layer in self.layers:
                x = layer(x)
        return (x.reshape(x.shape[0], -1) @ self.output[...])[:, 0] + self.bias[...]
