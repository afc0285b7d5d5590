"""Deep & Cross Networks: DCN (arXiv 1708.05123) and DCN-v2 (arXiv 2008.13535)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import Field, Model, Vectors, concatenated, concatenated_width, hidden
from dlrm_jax.models.mlp import MLP, at_least_float32


class CrossVector(nnx.Module):
    """x' = x₀ (xᵀ w) + b + x, DCN's layer.

    Args:
        width: width of x.
        rngs: random number generators of the initial values.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.glorot_normal()
        self.weight = nnx.Param(init(rngs.params(), (width, 1)))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, first: Float[Array, "B W"], x: Float[Array, "B W"]) -> Float[Array, "B W"]:
        """Crosses x with the first layer's input."""
        return first * (x @ self.weight[...]) + self.bias[...] + x


class CrossMatrix(nnx.Module):
    """x' = x₀ ∘ (W x + b) + x, DCN-v2's layer; W = U V if it has low rank.

    Args:
        width: width of x.
        rank: rank of W; 0 for a full matrix.
        rngs: random number generators of the initial values.
    """

    def __init__(self, width: int, rank: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.glorot_normal()
        shapes = [(width, rank), (rank, width)] if rank else [(width, width)]
        self.factors = nnx.List(nnx.Param(init(rngs.params(), shape)) for shape in shapes)
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, first: Float[Array, "B W"], x: Float[Array, "B W"]) -> Float[Array, "B W"]:
        """Crosses x with the first layer's input."""
        product = x
        for factor in self.factors:
            product = product @ factor[...]
        return first * (product + self.bias[...]) + x


@jax.named_scope("interaction")
def crossed(layers: Iterable[Any], first: Float[Array, "B W"]) -> Float[Array, "B W"]:
    """Applies cross layers, each to the input of the first one and the result of the one before."""
    x = first
    for layer in layers:
        x = layer(first, x)
    return x


class DCN(Model):
    """Cross layers and an MLP, both over dense features and vectors; one logit of both.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        top_mlp: widths of the deep part; the last is 1, the logit.
        layers: number of cross layers.
        rngs: random number generators of the initial values.
        dtype: type in which the MLP computes.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        layers: int = 3,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.fields = tuple(fields)
        width = concatenated_width(dense_features, fields)
        self.cross = nnx.List(CrossVector(width, rngs=rngs) for _ in range(layers))
        deep = (width, *hidden(top_mlp))
        self.deep = MLP(deep, last_relu=True, rngs=rngs, dtype=dtype)
        self.output = MLP((width + deep[-1], 1), last_relu=False, rngs=rngs)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        first = concatenated(dense, vectors, self.fields)
        x = crossed(self.cross, first)
        with jax.named_scope("top_mlp"):
            deep = self.deep(first)
            return self.output(jnp.concatenate([x, deep.astype(x.dtype)], axis=1))[:, 0]


class DCNv2(Model):
    """Cross layers with matrices, and an MLP behind them or beside them (figure 1 of the paper).

    With a rank and a bottom MLP this is the model of MLPerf's DLRM-DCNv2.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        bottom_mlp: widths of an MLP on the dense features, with a ReLU after each layer; empty in
            the paper.
        top_mlp: widths of the deep part; the last is 1, the logit.
        layers: number of cross layers.
        rank: rank of their matrices; 0 for full ones.
        structure: position of the deep part: ``"stacked"`` on the cross layers, or ``"parallel"``.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        bottom_mlp: Sequence[int],
        top_mlp: Sequence[int],
        *,
        layers: int = 3,
        rank: int = 0,
        structure: Literal["stacked", "parallel"] = "stacked",
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.fields = tuple(fields)
        self.structure = structure
        self.bottom = MLP((dense_features, *bottom_mlp), last_relu=True, rngs=rngs, dtype=dtype)
        width = concatenated_width((dense_features, *bottom_mlp)[-1], fields)
        self.cross = nnx.List(CrossMatrix(width, rank, rngs=rngs) for _ in range(layers))
        deep = (width, *hidden(top_mlp))
        if structure == "stacked":
            self.top = MLP((*deep, 1), last_relu=False, rngs=rngs, dtype=dtype)
            return
        self.top = MLP(deep, last_relu=True, rngs=rngs, dtype=dtype)
        self.output = MLP((width + deep[-1], 1), last_relu=False, rngs=rngs)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        with jax.named_scope("bottom_mlp"):
            bottom = at_least_float32(self.bottom(dense))
        first = concatenated(bottom, vectors, self.fields)
        x = crossed(self.cross, first)
        with jax.named_scope("top_mlp"):
            if self.structure == "stacked":
                return at_least_float32(self.top(x)[:, 0])
            deep = self.top(first).astype(x.dtype)
            return self.output(jnp.concatenate([x, deep], axis=1))[:, 0]
