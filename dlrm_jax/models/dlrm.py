"""DLRM (arXiv 1906.00091): dense features and pooled vectors to one logit."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import Field, Model, Vectors, hidden
from dlrm_jax.models.interaction import cat, dot, interaction_width
from dlrm_jax.models.mlp import MLP, at_least_float32


class DLRM(Model):
    """``top_mlp(interact(bottom_mlp(dense), vectors))``.

    Without dense features the bottom MLP returns the same learned vector for all examples. Its
    products with the other vectors are the terms of a linear model.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, in the order in which their vectors interact.
        bottom_mlp: widths of the layers; a ReLU follows each.
        top_mlp: widths of the layers; the last is 1, the logit, without a ReLU.
        interaction: ``"dot"``, for which all widths must equal ``bottom_mlp[-1]``, or ``"cat"``.
        self_interaction: whether to include the dot product of each vector with itself.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute; the interaction stays in at least float32.
        param_dtype: type of the parameters.

    Raises:
        UserError: the widths don't fit together.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        bottom_mlp: Sequence[int],
        top_mlp: Sequence[int],
        *,
        interaction: Literal["dot", "cat"] = "dot",
        self_interaction: bool = False,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        if not bottom_mlp:
            raise UserError("the bottom MLP needs at least one layer, got none")
        wrong = {f.name: f.width for f in fields if f.width != bottom_mlp[-1]}
        if interaction == "dot" and wrong:
            raise UserError(
                f"dot interaction needs vectors as wide as the bottom MLP's output, "
                f"{bottom_mlp[-1]}; got {wrong}"
            )
        width = interaction_width(
            interaction, bottom_mlp[-1], [field.width for field in fields], self_interaction
        )
        self.names = tuple(field.name for field in fields)
        self.interaction = interaction
        self.self_interaction = self_interaction
        make = functools.partial(MLP, rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        # Nothing to normalize in a constant: rounding errors would be blown up.
        plain = not dense_features
        self.bottom = make((dense_features, *bottom_mlp), last_relu=True, plain=plain)
        self.top = make((width, *hidden(top_mlp), 1), last_relu=False)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        pooled = [vectors[name] for name in self.names]
        with jax.named_scope("bottom_mlp"):
            x = at_least_float32(self.bottom(dense))
        with jax.named_scope("interaction"):
            z = self.interact(x, pooled)
        with jax.named_scope("top_mlp"):
            return at_least_float32(self.top(z)[:, 0])

    def interact(
        self, x: Float[Array, "B d"], pooled: list[Float[Array, "B *_"]]
    ) -> Float[Array, "B W"]:
        """Combines the dense vector with the pooled ones, in the order of the fields."""
        if self.interaction == "cat":
            return cat(x, pooled)
        return dot(x, pooled, self.self_interaction)
