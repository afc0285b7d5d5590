"""The two towers: one makes the vector of a user, the other that of an item."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import Field, Model, Vectors, concatenated, concatenated_width
from dlrm_jax.models.mlp import MLP


class TwoTower(Model):
    """Two MLPs whose results have length 1 (Yi et al., 2019, section 3).

    The fields and the dense features of the user come first, then those of the item.

    Args:
        dense_features: number of dense features of both.
        fields: categorical inputs of both.
        user_fields: number of fields that are the user's.
        user_dense: number of dense features that are the user's.
        tower: widths of the layers of each tower; the last is that of the vectors.
        softmax_temperature: number that the product of two vectors is divided by in the logit.
        rngs: random number generators of the initial values.

    Raises:
        UserError: a tower has no input, or no layer.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        *,
        user_fields: int,
        user_dense: int,
        tower: tuple[int, ...],
        softmax_temperature: float,
        rngs: nnx.Rngs,
    ):
        if not tower:
            raise UserError("tower: expected at least one width, got none")
        self.user_fields, self.item_fields = (
            tuple(fields[:user_fields]),
            tuple(fields[user_fields:]),
        )
        self.user_dense = user_dense
        self.softmax_temperature = softmax_temperature
        inputs = (
            concatenated_width(user_dense, self.user_fields),
            concatenated_width(dense_features - user_dense, self.item_fields),
        )
        for name, width in zip(("user", "item"), inputs, strict=True):
            if not width:
                raise UserError(f"{name}_columns: expected at least one column, got none")
        self.user_mlp = MLP((inputs[0], *tower), last_relu=False, rngs=rngs)
        self.item_mlp = MLP((inputs[1], *tower), last_relu=False, rngs=rngs)

    def user(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B d"]:
        """The vectors of users; what is the item's isn't read."""
        own = concatenated(dense[:, : self.user_dense], vectors, self.user_fields)
        return _unit(self.user_mlp(own))

    def item(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B d"]:
        """The vectors of items; what is the user's isn't read."""
        own = concatenated(dense[:, self.user_dense :], vectors, self.item_fields)
        return _unit(self.item_mlp(own))

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns each user's score with the item of the same example, over the temperature."""
        scores = jnp.sum(self.user(dense, vectors) * self.item(dense, vectors), axis=1)
        return scores / self.softmax_temperature


def _unit(x: Float[Array, "B d"]) -> Float[Array, "B d"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=1, keepdims=True) + 1e-12)
