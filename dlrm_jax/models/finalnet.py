"""FinalNet (Zhu et al., "FINAL: Factorized Interaction Layer for CTR Prediction", SIGIR 2023)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.ensemble import Ensemble
from dlrm_jax.models.fields import (
    Field,
    FieldVectors,
    Vectors,
    check_share,
    common_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP, Normalization, at_least_float32

Residual = Literal["concat", "sum"]
Activation = Literal["none", "relu"]


class FactorizedInteraction(nnx.Module):
    """[a, a ∘ b] or a + a ∘ b, of two halves a and b of W x + bias (doi 10.1145/3539618.3591988).

    A normalization, an activation and dropout follow. Each layer doubles the order of the
    interactions.

    Args:
        width: width of x.
        out: width of the result.
        residual: ``"concat"``, for which the result's width is even, or ``"sum"``.
        activation: ``"none"`` or ``"relu"``.
        dropout: share of the outputs that is dropped in training.
        normalization: normalization of the result.
        rngs: random number generators of the initial values, and of the dropout.
        dtype: type in which the layer computes; products stay in at least float32.
    """

    def __init__(
        self,
        width: int,
        out: int,
        residual: Residual,
        activation: Activation,
        dropout: float,
        normalization: Normalization,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.residual = residual
        self.activation = activation
        both = out if residual == "concat" else 2 * out
        self.linear = MLP((width, both), last_relu=False, rngs=rngs, dtype=dtype)
        if normalization == "batch":
            self.norm = nnx.BatchNorm(out, momentum=0.9, epsilon=1e-5, rngs=rngs)
        elif normalization == "layer":
            self.norm = nnx.LayerNorm(out, epsilon=1e-5, rngs=rngs)
        if dropout:
            self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: Float[Array, "B in"]) -> Float[Array, "B out"]:
        """Multiplies projections of x."""
        a, b = jnp.split(at_least_float32(self.linear(x)), 2, axis=1)
        x = a + a * b if self.residual == "sum" else jnp.concatenate([a, a * b], axis=1)
        x = self.norm(x) if hasattr(self, "norm") else x
        x = jax.nn.relu(x) if self.activation == "relu" else x
        return self.dropout(x) if hasattr(self, "dropout") else x


class FieldGate(nnx.Module):
    """[e, e ∘ g] with gᵢ = Σⱼ wᵢⱼ eⱼ + bᵢ over the n fields' vectors; it starts with g = 1.

    Args:
        count: number of fields, n.
    """

    def __init__(self, count: int):
        self.weight = nnx.Param(jnp.zeros((count, count)))
        self.bias = nnx.Param(jnp.ones(count))

    def __call__(self, fields: Float[Array, "B n d"]) -> Float[Array, "B m d"]:
        """Returns m = 2n vectors."""
        gates = jnp.einsum("bjd,ji->bid", fields, self.weight[...]) + self.bias[...][:, None]
        return jnp.concatenate([fields, fields * gates], axis=1)


class FinalNet(Ensemble):
    """The mean of the logits of one or two stacks of factorized interactions.

    The first stack reads gated vectors, the second, if there is one, plain ones. The paper trains
    two stacks with the loss ``self_distillation``, in which both learn from their mean. FuxiCTR
    uses it with batch normalization, here ``--normalization=batch``.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d.
        top_mlp: widths of the first stack's layers; the last is 1, the logit.
        blocks: number of stacks, 1 or 2.
        second_mlp: widths of the second stack's layers, without the logit; None for those of the
            first.
        residual: ``"concat"``, for which all widths are even, or ``"sum"``.
        activation: ``"none"`` or ``"relu"``, after each layer.
        gating: whether the first stack reads gated vectors.
        dropout: share of each layer's outputs that is dropped in training.
        second_dropout: the same of the second stack; None for as much.
        normalization: normalization of each layer.
        rngs: random number generators of the initial values.
        dtype: type in which layers compute; their products stay in at least float32.

    Raises:
        UserError: there are no layers or as many blocks, a width is odd, or a share out of range.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        blocks: int = 2,
        second_mlp: tuple[int, ...] | None = None,
        residual: Residual = "concat",
        activation: Activation = "none",
        gating: bool = True,
        dropout: float = 0.0,
        second_dropout: float | None = None,
        normalization: Normalization = "none",
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        if blocks not in (1, 2):
            raise UserError(f"model_options: blocks: expected 1 or 2, got {blocks}")
        first = hidden(top_mlp)
        if not first:
            raise UserError(f"top_mlp: finalnet needs the width of a layer, got {tuple(top_mlp)}")
        second = first if second_mlp is None else second_mlp
        shares = (dropout, dropout if second_dropout is None else second_dropout)
        check_share(second_dropout=shares[1])
        if residual == "concat" and any(width % 2 for width in (*first, *second)):
            raise UserError(
                f"model_options: residual=concat needs even widths, got {first} and {second}; "
                f"change top_mlp or second_mlp, or give residual=sum"
            )
        self.field_vectors = FieldVectors(dense_features, fields, rngs=rngs)
        count, width = dense_features + len(fields), common_width(fields)
        if gating:
            self.gate = FieldGate(count)
        inputs = (count * width * (2 if gating else 1), count * width)

        def stack(i: int) -> nnx.List:
            widths = (inputs[i], *(first, second)[i])
            options = (residual, activation, shares[i], normalization)
            return nnx.List(
                FactorizedInteraction(*pair, *options, rngs=rngs, dtype=dtype)
                for pair in itertools.pairwise(widths)
            )

        self.size = blocks
        self.blocks = nnx.List(stack(i) for i in range(blocks))
        ends = (first[-1], second[-1])[:blocks]
        self.outputs = nnx.List(MLP((end, 1), last_relu=False, rngs=rngs) for end in ends)

    def members(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B P"]:
        """Returns the logits of each stack."""
        fields = self.field_vectors(dense, vectors)
        gated = self.gate(fields) if hasattr(self, "gate") else fields
        logits = []
        with jax.named_scope("interaction"):
            inputs = (gated, fields)[: len(self.blocks)]
            for vectors_in, block, output in zip(inputs, self.blocks, self.outputs, strict=True):
                x = vectors_in.reshape(fields.shape[0], -1)
                for layer in block:
                    x = layer(x)
                logits.append(output(x)[:, 0])
        return jnp.stack(logits, axis=1)
