"""Vectors that are made of what several smaller tables hold, or that a table holds in part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.models.fields import Vectors

Composition = Literal["product", "sum", "concat"]


@dataclasses.dataclass(frozen=True)
class QuotientRemainder:
    """A vector for each id from two tables (arXiv 1909.02107, section 4).

    Id i of n has row i // c of one table, ⌈n/c⌉ rows, and row i mod c of another one, c rows. The
    sums over a bag are composed, as in the DLRM reference.

    Attributes:
        quotient: the name of the one's vectors.
        remainder: of the other's.
        composition: how the two become one; concatenated ones are half as wide each.
    """

    quotient: str
    remainder: str
    composition: Composition

    def __call__(self, vectors: Vectors) -> Float[Array, "B d"]:
        """Composes the two."""
        quotient, remainder = vectors[self.quotient], vectors[self.remainder]
        if self.composition == "product":
            return quotient * remainder
        if self.composition == "sum":
            return quotient + remainder
        return jnp.concatenate([quotient, remainder], axis=-1)


class Projection(nnx.Module):
    """A vector of full width from a narrower one, without bias (arXiv 1909.11810, section 3).

    Args:
        name: of the narrower one.
        width: of it.
        full_width: of what the model gets.
        rngs: of the initial values.
    """

    def __init__(self, name: str, width: int, full_width: int, *, rngs: nnx.Rngs):
        self.name = name
        init = jax.nn.initializers.glorot_normal()
        self.weight = nnx.Param(init(rngs.params(), (width, full_width)))

    def __call__(self, vectors: Vectors) -> Float[Array, "B *_"]:
        """Projects the pooled vectors, or each of a sequence."""
        return vectors[self.name] @ self.weight[...]


@dataclasses.dataclass(frozen=True)
class LearnedPooling:
    """Σ w v over a bag, where each row of the table has a weight w that is learned as well.

    Attributes:
        name: of the sequence of vectors.
        weights: the name of the sequence of weights.
    """

    name: str
    weights: str

    def __call__(self, vectors: Vectors) -> Float[Array, "B d"]:
        """Pools. The vector of an absent id is zero and adds nothing."""
        return jnp.einsum("bld,bl->bd", vectors[self.name], vectors[self.weights][:, :, 0])


Part = Callable[[Vectors], Float[Array, "B *_"]]
"""One vector out of what tables hold; an `nnx.Module` if it has parameters."""


class ComposedEmbeddings(nnx.Module):
    """A model and what makes its vectors.

    Args:
        model: that reads them.
        parts: by the name of the vector that they make; the model reads all others as they are.
    """

    def __init__(self, model: nnx.Module, parts: Mapping[str, Part]):
        self.model: Any = model
        self.names = tuple(parts)
        # Dots separate the names of parameters.
        self.parts = nnx.Dict({name.replace(".", "_"): part for name, part in parts.items()})

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        made = {name: self.parts[name.replace(".", "_")](vectors) for name in self.names}
        return self.model(dense, {**vectors, **made})
