"""AutoInt and AutoInt+ (arXiv 1810.11921): self-attention between fields."""

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
    FieldVectors,
    FirstOrder,
    Model,
    Read,
    Vectors,
    check_positive,
    check_share,
    common_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP, at_least_float32
from dlrm_jax.models.tokens import EPSILON


class InteractingLayer(nnx.Module):
    """Multi-head self-attention over fields, with a residual and a ReLU (equations 5 to 8).

    Args:
        width: width of the input vectors.
        heads: number of heads, H.
        head_width: width of a head's vectors.
        layer_norm: whether a layer normalization of each field's vector precedes the ReLU, as in
            FuxiCTR.
        dropout: share of the attention weights that is dropped in training.
        rngs: random number generators of the initial values, and of the dropout.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        layer_norm: bool = False,
        dropout: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        init = jax.nn.initializers.glorot_normal()

        def matrix() -> nnx.Param:
            return nnx.Param(init(rngs.params(), (width, heads * head_width)))

        self.heads = heads
        self.query, self.key, self.value, self.residual = (matrix() for _ in range(4))
        if layer_norm:
            self.norm = nnx.LayerNorm(heads * head_width, epsilon=EPSILON, rngs=rngs)
        if dropout:
            self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: Float[Array, "B F in"]) -> Float[Array, "B F out"]:
        """Returns F vectors of width H · head_width."""

        def by_head(weight: nnx.Param) -> Float[Array, "B F H a"]:
            return (x @ weight[...]).reshape(*x.shape[:2], self.heads, -1)

        scores = jnp.einsum("bmha,bnha->bhmn", by_head(self.query), by_head(self.key))
        attention = jax.nn.softmax(scores, axis=-1)
        attention = self.dropout(attention) if hasattr(self, "dropout") else attention
        heads = jnp.einsum("bhmn,bnha->bmha", attention, by_head(self.value))
        y = heads.reshape(*x.shape[:2], -1) + x @ self.residual[...]
        return jax.nn.relu(self.norm(y) if hasattr(self, "norm") else y)


class AutoInt(Model):
    """Interacting layers over the vectors of all fields, and a linear layer to one logit.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d.
        layers: number of interacting layers.
        heads: number of heads of each layer.
        head_width: width of a head's vectors.
        layer_norm: whether interacting layers have a layer normalization, as in FuxiCTR.
        attention_dropout: share of the attention weights that is dropped in training.
        rngs: random number generators of the initial values.

    Raises:
        UserError: a number isn't positive, the vectors differ in width, or a share is out of range.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        *,
        layers: int = 2,
        heads: int = 2,
        head_width: int = 16,
        layer_norm: bool = False,
        attention_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_positive(layers=layers, heads=heads, head_width=head_width)
        check_share(attention_dropout=attention_dropout)
        self.field_vectors = FieldVectors(dense_features, fields, rngs=rngs)
        out = heads * head_width
        inputs = [common_width(fields), *[out] * (layers - 1)]
        self.layers = nnx.List(
            InteractingLayer(width, heads, head_width, layer_norm, attention_dropout, rngs=rngs)
            for width in inputs
        )
        flat = (dense_features + len(fields)) * out
        self.output = nnx.Param(jax.nn.initializers.glorot_normal()(rngs.params(), (flat, 1)))
        self.bias = nnx.Param(jnp.zeros(()))

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        return self.attended(self.field_vectors(dense, vectors))

    def attended(self, x: Float[Array, "B F d"]) -> Float[Array, " B"]:
        """The logits of the fields' vectors."""
        with jax.named_scope("interaction"):
            for layer in self.layers:
                x = layer(x)
        return (x.reshape(x.shape[0], -1) @ self.output[...])[:, 0] + self.bias[...]


class AutoIntPlus(AutoInt):
    """AutoInt + MLP + linear model, of which the first two read the same vectors.

    The paper's AutoInt+ has no linear model; it is FuxiCTR's ``use_wide``.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d.
        top_mlp: widths of the MLP; the last is 1, the logit.
        layers: number of interacting layers.
        heads: number of heads of each layer.
        head_width: width of a head's vectors.
        layer_norm: whether interacting layers have a layer normalization, as in FuxiCTR.
        attention_dropout: share of the attention weights that is dropped in training.
        rngs: random number generators of the initial values.
        dtype: type in which the MLP computes; attention stays in at least float32.

    Raises:
        UserError: a number isn't positive, the vectors differ in width, or a share is out of range.
    """

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """A vector and a weight."""
        return (VECTOR, WEIGHT)

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        layers: int = 2,
        heads: int = 2,
        head_width: int = 16,
        layer_norm: bool = False,
        attention_dropout: float = 0.0,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        super().__init__(
            dense_features,
            fields,
            layers=layers,
            heads=heads,
            head_width=head_width,
            layer_norm=layer_norm,
            attention_dropout=attention_dropout,
            rngs=rngs,
        )
        self.first_order = FirstOrder(dense_features, fields)
        widths = ((dense_features + len(fields)) * common_width(fields), *hidden(top_mlp), 1)
        self.deep = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        x = self.field_vectors(dense, vectors)
        linear = self.first_order(dense, vectors)
        with jax.named_scope("top_mlp"):
            deep = at_least_float32(self.deep(x.reshape(x.shape[0], -1))[:, 0])
        return self.attended(x) + deep + linear
