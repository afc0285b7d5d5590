"""Multi-gate mixture of experts (Ma et al., KDD 2018, doi 10.1145/3219819.3220007)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import (
    Field,
    Model,
    Vectors,
    check_positive,
    concatenated,
    concatenated_width,
)
from dlrm_jax.models.heads import Towers, count, joined
from dlrm_jax.models.mlp import MLP, at_least_float32


class Experts(nnx.Module):
    """MLPs of one shape on one input, a ReLU after each layer.

    Args:
        number: number of experts, E.
        widths: width of the input, then of each layer.
        rngs: random number generators of the initial values.
        dtype: type in which they compute.
    """

    def __init__(self, number: int, widths: Sequence[int], *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.experts = nnx.List(
            MLP(widths, last_relu=True, rngs=rngs, dtype=dtype) for _ in range(number)
        )

    def __call__(self, x: Float[Array, "B W"]) -> list[Float[Array, "B e"]]:
        """Returns the result of each expert."""
        return [at_least_float32(expert(x)) for expert in self.experts]


class Gate(nnx.Module):
    """Σᵢ gᵢ(x) fᵢ with g(x) = softmax(W x), over E experts (equations 7 and 8 of MMoE).

    Args:
        width: width of x.
        number: number of experts, E.
        rngs: random number generators of the initial values.
    """

    def __init__(self, width: int, number: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.glorot_normal()
        self.weight = nnx.Param(init(rngs.params(), (width, number)))

    def __call__(
        self, x: Float[Array, "B W"], experts: Sequence[Float[Array, "B e"]]
    ) -> Float[Array, "B e"]:
        """Mixes the results of experts."""
        shares = jax.nn.softmax(x @ self.weight[...], axis=1)
        return sum(shares[:, i, None] * each for i, each in enumerate(experts))  # pyright: ignore


class MMoE(Model):
    """yₖ = towerₖ(Σᵢ gₖᵢ(x) fᵢ(x)): experts that all labels share, and a gate for each label.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        top_mlp: widths of each label's tower; the last is 1, the logit.
        labels: names of the labels, H of them.
        experts: number of experts.
        expert_mlp: widths of each expert, with a ReLU after each layer.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute; gates stay in at least float32.

    Raises:
        UserError: there is no expert.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        labels: Sequence[str] = (),
        *,
        experts: int = 4,
        expert_mlp: tuple[int, ...] = (64,),
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        check_positive(experts=experts)
        self.fields = tuple(fields)
        width = concatenated_width(dense_features, fields)
        self.experts = Experts(experts, (width, *expert_mlp), rngs=rngs, dtype=dtype)
        self.gates = nnx.List(Gate(width, experts, rngs=rngs) for _ in range(count(labels)))
        self.towers = Towers(expert_mlp[-1], labels, top_mlp, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B *_"]:
        """Returns the logits."""
        x = concatenated(dense, vectors, self.fields)
        with jax.named_scope("interaction"):
            found = self.experts(x)
            mixed = [gate(x, found) for gate in self.gates]
        with jax.named_scope("top_mlp"):
            return joined(self.towers(mixed))
