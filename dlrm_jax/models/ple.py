"""Progressive layered extraction (Tang et al., RecSys 2020, doi 10.1145/3383313.3412236)."""

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
from dlrm_jax.models.mmoe import Experts, Gate


class Extraction(nnx.Module):
    """One level: experts of each label and shared ones, and gates that mix them (section 4.2).

    The gate of a label mixes its own experts and the shared ones; that of the shared part mixes
    all experts. The last level has no gate of the shared part, which nothing would read.

    Args:
        labels: number of labels, H.
        own: number of experts of each label.
        shared: number of shared experts.
        widths: width of the inputs, then of each expert's layers.
        is_last: whether there is no level above.
        rngs: random number generators of the initial values.
        dtype: type in which the experts compute.
    """

    def __init__(
        self,
        labels: int,
        own: int,
        shared: int,
        widths: Sequence[int],
        is_last: bool,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.own = nnx.List(Experts(own, widths, rngs=rngs, dtype=dtype) for _ in range(labels))
        self.shared = Experts(shared, widths, rngs=rngs, dtype=dtype)
        self.gates = nnx.List(Gate(widths[0], own + shared, rngs=rngs) for _ in range(labels))
        self.is_last = is_last
        if not is_last:
            self.shared_gate = Gate(widths[0], labels * own + shared, rngs=rngs)

    def __call__(
        self, parts: Sequence[Float[Array, "B W"]], common: Float[Array, "B W"]
    ) -> tuple[list[Float[Array, "B e"]], Float[Array, "B _"]]:
        """From the inputs of each label and of the shared part to those of the next level."""
        own = [experts(x) for experts, x in zip(self.own, parts, strict=True)]
        shared = self.shared(common)
        mixed = [
            gate(x, [*each, *shared]) for gate, x, each in zip(self.gates, parts, own, strict=True)
        ]
        if self.is_last:
            return mixed, common
        return mixed, self.shared_gate(common, [*(x for each in own for x in each), *shared])


class PLE(Model):
    """yₖ = towerₖ of level after level of experts, some of each label and some shared.

    With one level this is the paper's CGC.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        top_mlp: widths of each label's tower; the last is 1, the logit.
        labels: names of the labels, H of them.
        levels: number of levels.
        own_experts: number of experts of each label in a level.
        shared_experts: number of shared experts in a level.
        expert_mlp: widths of each expert, with a ReLU after each layer.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute; gates stay in at least float32.

    Raises:
        UserError: there is no level, or there are no experts of one kind.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        labels: Sequence[str] = (),
        *,
        levels: int = 2,
        own_experts: int = 2,
        shared_experts: int = 2,
        expert_mlp: tuple[int, ...] = (64,),
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        check_positive(levels=levels, own_experts=own_experts, shared_experts=shared_experts)
        self.fields = tuple(fields)
        self.labels = count(labels)
        inputs = [concatenated_width(dense_features, fields), *[expert_mlp[-1]] * (levels - 1)]
        self.levels = nnx.List(
            Extraction(
                self.labels,
                own_experts,
                shared_experts,
                (width, *expert_mlp),
                i + 1 == levels,
                rngs=rngs,
                dtype=dtype,
            )
            for i, width in enumerate(inputs)
        )
        self.towers = Towers(expert_mlp[-1], labels, top_mlp, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B *_"]:
        """Returns the logits."""
        common = concatenated(dense, vectors, self.fields)
        parts = [common] * self.labels
        with jax.named_scope("interaction"):
            for level in self.levels:
                parts, common = level(parts, common)
        with jax.named_scope("top_mlp"):
            return joined(self.towers(parts))
