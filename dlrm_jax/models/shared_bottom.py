"""Shared bottom (Caruana, 1997, "Multitask Learning"; figure 1a of Ma et al., KDD 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import Field, Model, Vectors, concatenated, concatenated_width
from dlrm_jax.models.heads import Towers, count, joined
from dlrm_jax.models.mlp import MLP


class SharedBottom(Model):
    """yₖ = towerₖ(f(x)): one MLP over dense features and vectors, and a tower for each label.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        top_mlp: widths of each tower; the last is 1, the logit.
        labels: names of the labels, H of them.
        shared_mlp: widths of the MLP that all labels share, with a ReLU after each layer.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        labels: Sequence[str] = (),
        *,
        shared_mlp: tuple[int, ...] = (128, 64),
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.fields = tuple(fields)
        self.labels = count(labels)
        widths = (concatenated_width(dense_features, fields), *shared_mlp)
        self.shared = MLP(widths, last_relu=True, rngs=rngs, dtype=dtype)
        self.towers = Towers(widths[-1], labels, top_mlp, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B *_"]:
        """Returns the logits."""
        with jax.named_scope("bottom_mlp"):
            x = self.shared(concatenated(dense, vectors, self.fields))
        with jax.named_scope("top_mlp"):
            return joined(self.towers([x] * self.labels))
