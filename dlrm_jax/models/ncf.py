"""Neural collaborative filtering (arXiv 1708.05031): a user and an item, by their ids alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import VECTOR, Field, Model, Read, Vectors, common_width, hidden
from dlrm_jax.models.mlp import MLP

_OF_MLP = Read(".mlp")


class NCF(Model):
    """NeuMF: one logit from a product of vectors and from an MLP over others (section 3.4).

    It reads two fields of one width, such as the user and the item, and no dense features.

    Raises:
        UserError: there are other inputs.
    """

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """One vector for the product, one for the MLP."""
        return (VECTOR, _OF_MLP)

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        if len(fields) != 2 or dense_features:
            raise UserError(
                f"neural collaborative filtering is for two fields, a user and an item, and no "
                f"dense features; got {len(fields)} and {dense_features}"
            )
        width = common_width(fields)
        self.names = tuple(field.name for field in fields)
        mlp = (2 * width, *hidden(top_mlp))
        self.mlp = MLP(mlp, last_relu=True, rngs=rngs, dtype=dtype)
        self.output = MLP((width + mlp[-1], 1), last_relu=False, rngs=rngs)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        first, second = self.names
        product = vectors[first] * vectors[second]
        both = [vectors[first + _OF_MLP.suffix], vectors[second + _OF_MLP.suffix]]
        with jax.named_scope("top_mlp"):
            deep = self.mlp(jnp.concatenate(both, axis=1))
            return self.output(jnp.concatenate([product, deep.astype(product.dtype)], axis=1))[:, 0]
