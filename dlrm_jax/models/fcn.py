"""FCN, formerly DCNv3 (arXiv 2407.13349): exponential and linear cross networks, without an MLP."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.ensemble import Ensemble
from dlrm_jax.models.fields import (
    Field,
    FieldVectors,
    Vectors,
    check_divides,
    check_positive,
    check_share,
    common_width,
)
from dlrm_jax.models.mlp import MLP, product
from dlrm_jax.models.tokens import EPSILON


class SelfMaskedCross(nnx.Module):
    """x' = f ∘ ([c, c ∘ ReLU(LN(c))] + b) + x with c = W x, half as wide as x.

    The half that is masked drops what its normalization makes negative. f is x itself in the
    exponential network, whose order doubles with each layer, and the first layer's input in the
    linear one.

    Args:
        width: width of x, an even number.
        dropout: share of the outputs that is dropped in training.
        rngs: random number generators of the initial values, and of the dropout.
        dtype: type of the operands of W x; all else stays in at least float32.
    """

    def __init__(self, width: int, dropout: float, *, rngs: nnx.Rngs, dtype: DTypeLike):
        init = jax.nn.initializers.glorot_normal()
        self.weight = nnx.Param(init(rngs.params(), (width, width // 2)))
        self.bias = nnx.Param(jnp.zeros(width))
        self.norm = nnx.LayerNorm(width // 2, epsilon=EPSILON, rngs=rngs)
        self.dtype = dtype
        if dropout:
            self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, factor: Float[Array, "B W"], x: Float[Array, "B W"]) -> Float[Array, "B W"]:
        """Crosses x with a factor."""
        c = product(x, self.weight[...], self.dtype)
        both = jnp.concatenate([c, c * jax.nn.relu(self.norm(c))], axis=1)
        x = factor * (both + self.bias[...]) + x
        return self.dropout(x) if hasattr(self, "dropout") else x


class CrossNetwork(nnx.Module):
    """Self-masked cross layers and a linear layer to one number.

    Args:
        width: width of the input.
        layers: number of layers.
        is_exponential: whether each layer crosses x with itself.
        dropout: share of each layer's outputs that is dropped in training.
        rngs: random number generators of the initial values.
        dtype: type of the operands of matrix products.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        is_exponential: bool,
        dropout: float,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.is_exponential = is_exponential
        self.layers = nnx.List(
            SelfMaskedCross(width, dropout, rngs=rngs, dtype=dtype) for _ in range(layers)
        )
        self.output = MLP((width, 1), last_relu=False, rngs=rngs)

    def __call__(self, first: Float[Array, "B W"]) -> Float[Array, " B"]:
        """Returns one number per example."""
        x = first
        for layer in self.layers:
            x = layer(x if self.is_exponential else first, x)
        return self.output(x)[:, 0]


class FCN(Ensemble):
    """The mean of the logits of an exponential and a linear cross network.

    A head has a part of each vector, and the networks' parameters are the same for all heads,
    whose logits are averaged. The first halves of all parts come before all second halves, so that
    the mask falls on each field. The paper trains it with the loss ``tri_bce``.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d, a multiple of 2 · heads.
        exponential_layers: number of layers of the exponential network.
        linear_layers: number of layers of the linear network.
        heads: number of heads.
        dropout: share of the outputs of the exponential network's layers that is dropped in
            training.
        linear_dropout: the same of the linear network; None for as much.
        rngs: random number generators of the initial values.
        dtype: type of the operands of the cross layers' matrices.

    Raises:
        UserError: the heads don't divide the width, a number isn't positive, or a share is out of
            range.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        *,
        exponential_layers: int = 4,
        linear_layers: int = 4,
        heads: int = 1,
        dropout: float = 0.0,
        linear_dropout: float | None = None,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        check_positive(
            exponential_layers=exponential_layers, linear_layers=linear_layers, heads=heads
        )
        shares = (dropout, dropout if linear_dropout is None else linear_dropout)
        check_share(linear_dropout=shares[1])
        check_divides("2 · heads", 2 * heads, "the width of the vectors", common_width(fields))
        self.heads = heads
        self.size = 2
        self.field_vectors = FieldVectors(dense_features, fields, rngs=rngs)
        width = (dense_features + len(fields)) * common_width(fields) // heads
        layers = (exponential_layers, linear_layers)
        self.exponential, self.linear = (
            CrossNetwork(width, layers[i], i == 0, shares[i], rngs=rngs, dtype=dtype)
            for i in range(2)
        )

    def members(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B 2"]:
        """Returns the logits of the exponential and of the linear network."""
        fields = self.field_vectors(dense, vectors)
        count = fields.shape[0]
        # [B, F, heads, half, d / (2 heads)]
        parts = fields.reshape(*fields.shape[:2], self.heads, 2, -1).transpose(0, 2, 3, 1, 4)
        with jax.named_scope("interaction"):
            x = parts.reshape(count * self.heads, -1)
            both = [self.exponential(x), self.linear(x)]
        return jnp.stack([jnp.mean(x.reshape(count, self.heads), axis=1) for x in both], axis=1)
