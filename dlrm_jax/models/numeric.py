"""Dense features as fields: each number times a trained vector, which models read like a table's.

FuxiCTR and the factorization machines embed numbers so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.models.fields import SMALL, Field, Model, Read, Vectors

VECTORS = "numeric_vectors"
"""Name of the vectors among the parameters."""


def numeric_fields(dense_features: int, fields: Sequence[Field], width: int) -> tuple[Field, ...]:
    """A field of one id for each dense feature, beside the categorical ones.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, whose names the new ones don't have.
        width: width of the vectors, d.
    """
    prefix = "numeric."
    while any(field.name.startswith(prefix) for field in fields):
        prefix = f"_{prefix}"
    return tuple(Field(f"{prefix}{i + 1}", width) for i in range(dense_features))


class NumericEmbedding(nnx.Module):
    """A model without dense features, and the vectors of those that have become fields.

    The vector of dense feature xⱼ is xⱼ vⱼ, with a trained vⱼ for each `Read`. Vectors start from
    N(0, 2 / (1 + d)) (variance), as a linear layer of the MLPs does, or as the read says.

    Args:
        model: the model, which reads all fields.
        fields: fields of the dense features, in their order.
        rngs: random number generators of the initial values.
    """

    def __init__(self, model: Model, fields: Sequence[Field], *, rngs: nnx.Rngs):
        self.model: Any = model
        self.names = tuple(field.name for field in fields)
        self.reads = model.reads(fields[0])
        vectors = {}
        for read in self.reads:
            width = read.width or fields[0].width
            values = _initial(read, (len(fields), width), rngs)
            vectors[_part(read)] = nnx.Param(values)
        setattr(self, VECTORS, nnx.Dict(vectors))

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        return self.model(dense[:, :0], self._with_numbers(dense, vectors))

    def members(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B P"]:
        """Returns the logits of each member of an `Ensemble`."""
        return self.model.members(dense[:, :0], self._with_numbers(dense, vectors))

    def _with_numbers(self, dense: Float[Array, "B D"], vectors: Vectors) -> Vectors:
        made = {}
        for read in self.reads:
            products = dense[:, :, None] * getattr(self, VECTORS)[_part(read)][...]
            for i, name in enumerate(self.names):
                vector = products[:, i]
                made[name + read.suffix] = vector[:, None] if read.sequence else vector
        return {**vectors, **made}


def _part(read: Read) -> str:
    return read.suffix.replace(".", "_").strip("_") or "vector"


def _initial(read: Read, shape: tuple[int, int], rngs: nnx.Rngs) -> Float[Array, "D d"]:
    if read.init == "zeros":
        return jnp.zeros(shape)
    deviation = SMALL if read.init == "small" else (2 / (1 + shape[1])) ** 0.5
    return deviation * jax.random.normal(rngs.params(), shape)
