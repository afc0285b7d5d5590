"""Gated Deep Cross Network, GDCN (arXiv 2311.04635)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.dcn import crossed
from dlrm_jax.models.fields import (
    Field,
    Model,
    Vectors,
    check_positive,
    concatenated,
    concatenated_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP, at_least_float32


class GatedCross(nnx.Module):
    """x' = x₀ ∘ (W x + b) ∘ σ(G x) + x: a cross layer and its information gate (equation 1).

    Args:
        width: width of x.
        rngs: random number generators of the initial values.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.glorot_normal()
        self.weight = nnx.Param(init(rngs.params(), (width, width)))
        self.gate = nnx.Param(init(rngs.params(), (width, width)))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, first: Float[Array, "B W"], x: Float[Array, "B W"]) -> Float[Array, "B W"]:
        """Crosses x with the first layer's input."""
        gate = jax.nn.sigmoid(x @ self.gate[...])
        return first * (x @ self.weight[...] + self.bias[...]) * gate + x


class GDCN(Model):
    """Gated cross layers, and an MLP behind them (GDCN-S) or beside them (GDCN-P).

    Tables keep one width: the paper's field-level dimension optimization isn't here.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        top_mlp: widths of the deep part; the last is 1, the logit.
        layers: number of cross layers.
        structure: position of the deep part: ``"stacked"`` on the cross layers, or ``"parallel"``.
        rngs: random number generators of the initial values.
        dtype: type in which the MLP computes; cross layers stay in at least float32.

    Raises:
        UserError: there are no layers.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        layers: int = 3,
        structure: Literal["stacked", "parallel"] = "stacked",
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        check_positive(layers=layers)
        self.fields = tuple(fields)
        self.structure = structure
        width = concatenated_width(dense_features, fields)
        self.cross = nnx.List(GatedCross(width, rngs=rngs) for _ in range(layers))
        deep = (width, *hidden(top_mlp))
        if structure == "stacked":
            self.deep = MLP((*deep, 1), last_relu=False, rngs=rngs, dtype=dtype)
            return
        self.deep = MLP(deep, last_relu=True, rngs=rngs, dtype=dtype)
        self.output = MLP((width + deep[-1], 1), last_relu=False, rngs=rngs)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        first = concatenated(dense, vectors, self.fields)
        x = crossed(self.cross, first)
        with jax.named_scope("top_mlp"):
            if self.structure == "stacked":
                return at_least_float32(self.deep(x)[:, 0])
            deep = self.deep(first).astype(x.dtype)
            return self.output(jnp.concatenate([x, deep], axis=1))[:, 0]
