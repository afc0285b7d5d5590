"""Models on composed embeddings: a vector made from several smaller tables or a narrower one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import Vectors

Composition = Literal["product", "sum", "concat"]


@dataclasses.dataclass(frozen=True)
class QuotientRemainder:
    """A vector for each id from two tables (arXiv 1909.02107, section 4).

    Id i of n reads row i // c of one table with ⌈n/c⌉ rows, and row i mod c of another with c rows.
    The sums over a bag are composed, as in the DLRM reference.

    Attributes:
        quotient: name of the first table's vectors.
        remainder: name of the second table's vectors.
        composition: composition of the two vectors; concatenated ones have half the width each.
    """

    quotient: str
    remainder: str
    composition: Composition

    def __call__(self, vectors: Vectors) -> Float[Array, "B d"]:
        """Composes the two vectors."""
        quotient, remainder = vectors[self.quotient], vectors[self.remainder]
        if self.composition == "product":
            return quotient * remainder
        if self.composition == "sum":
            return quotient + remainder
        return jnp.concatenate([quotient, remainder], axis=-1)


class Projection(nnx.Module):
    """A vector of full width from a narrower one, without bias (arXiv 1909.11810, section 3).

    Args:
        name: name of the narrower vector.
        width: width of the narrower vector.
        full_width: width of the result, which the model reads.
        rngs: random number generators of the initial values.
    """

    def __init__(self, name: str, width: int, full_width: int, *, rngs: nnx.Rngs):
        self.name = name
        init = jax.nn.initializers.glorot_normal()
        self.weight = nnx.Param(init(rngs.params(), (width, full_width)))

    def __call__(self, vectors: Vectors) -> Float[Array, "B *_"]:
        """Projects the pooled vectors, or each vector of a sequence."""
        return vectors[self.name] @ self.weight[...]


@dataclasses.dataclass(frozen=True)
class LearnedPooling:
    """Σ w v over a bag, with a learned weight w for each row of the table.

    Attributes:
        name: name of the sequence of vectors.
        weights: name of the sequence of weights.
    """

    name: str
    weights: str

    def __call__(self, vectors: Vectors) -> Float[Array, "B d"]:
        """Pools. The vector of an absent id is zero and adds nothing."""
        return jnp.einsum("bld,bl->bd", vectors[self.name], vectors[self.weights][:, :, 0])


Composer = Callable[[Vectors], Float[Array, "B *_"]]
"""A function that makes one vector of the tables' vectors; an `nnx.Module` if it has parameters."""


class ComposedEmbeddings(nnx.Module):
    """A model, and the compositions of its vectors.

    Args:
        model: the model, which reads the composed vectors.
        composers: composition of each composed vector, by its name. The model reads all other
            vectors unchanged.

    Raises:
        UserError: two names differ in nothing but dots and underscores.
    """

    def __init__(self, model: nnx.Module, composers: Mapping[str, Composer]):
        self.model: Any = model
        self.names = tuple(composers)
        # Checkpoints have this name. Dots separate the names of parameters.
        parts: dict[str, Composer] = {}
        for name, composer in composers.items():
            part = name.replace(".", "_")
            if part in parts:
                both = " and ".join(repr(x) for x in self.names if x.replace(".", "_") == part)
                raise UserError(f"compression: {both} would have one name; rename a feature")
            parts[part] = composer
        self.parts = nnx.Dict(parts)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B *_"]:
        """Returns the logits."""
        return self.model(dense, self._composed(vectors))

    def members(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B P"]:
        """Returns the logits of each member of an `Ensemble`."""
        return self.model.members(dense, self._composed(vectors))

    def _composed(self, vectors: Vectors) -> Vectors:
        made = {name: self.parts[name.replace(".", "_")](vectors) for name in self.names}
        return {**vectors, **made}
