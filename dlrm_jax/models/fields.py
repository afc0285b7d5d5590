"""What a model is made for and what it reads: categorical fields, dense features, their vectors."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.errors import UserError

SMALL = 0.01
"""Standard deviation of small initial values."""

Vectors = Mapping[str, Float[Array, "B *_"]]
"""By name (a field's, and what a `Read` adds), [B, width] or a sequence [B, max_ids, width]."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One categorical input of a model.

    Attributes:
        name: of its vector.
        width: of that vector, d.
        max_ids: how many ids an example has for it at most.
    """

    name: str
    width: int
    max_ids: int = 1


@dataclasses.dataclass(frozen=True)
class Read:
    """One of the vectors that a model wants of a field; each comes from a table of its own.

    Attributes:
        suffix: its name, behind the field's.
        width: None for the field's.
        init: of the table: the DLRM reference's uniform values, N(0, 0.01²), or zeros.
        sequence: one vector for each id, [max_ids, width], instead of their sum or mean.
    """

    suffix: str = ""
    width: int | None = None
    init: Literal["uniform", "small", "zeros"] = "uniform"
    sequence: bool = False


VECTOR = Read()
SMALL_VECTOR = Read(init="small")
"""For sums of many products, which values as large as the reference's would drown in noise."""
WEIGHT = Read(".weight", width=1, init="zeros")
"""A number for each id: what a linear model learns of it."""


class Model(nnx.Module):
    """From dense features and vectors to logits; knows no tables and no mesh.

    A model is one class: what it reads of each field, its parameters, and its formula. It is made
    as ``Class(dense_features, fields, rngs=…, **options)``. Options that have the names of fields
    of the run's config, such as ``top_mlp``, come from there, all others from ``model_options``.

    In predictions an example's logit depends on that example alone. In training there may be layers
    such as `nnx.Dropout` and `nnx.BatchNorm`, which then has statistics of the whole batch.
    """

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """What the model wants to know of a field: by default one vector."""
        del field
        return (VECTOR,)

    @abc.abstractmethod
    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits; their sigmoid is the click probability."""


def concatenated(
    dense: Float[Array, "B D"], vectors: Vectors, fields: Sequence[Field]
) -> Float[Array, "B W"]:
    """Dense features and the fields' vectors, side by side."""
    return jnp.concatenate([dense, *(vectors[field.name] for field in fields)], axis=1)


def concatenated_width(dense_features: int, fields: Sequence[Field]) -> int:
    """W of `concatenated`."""
    return dense_features + sum(field.width for field in fields)


def hidden(mlp: Sequence[int]) -> tuple[int, ...]:
    """The widths of a top MLP without its last, the logit.

    Raises:
        UserError: the last isn't 1.
    """
    if not mlp or mlp[-1] != 1:
        raise UserError(f"the top MLP must end in 1, the logit; got {tuple(mlp)}")
    return tuple(mlp[:-1])


def common_width(fields: Sequence[Field]) -> int:
    """The width d that all vectors have.

    Raises:
        UserError: they have several.
    """
    widths = {field.name: field.width for field in fields}
    if len(set(widths.values())) != 1:
        raise UserError(f"the model needs vectors of one width, got {widths}")
    return fields[0].width


class FirstOrder(nnx.Module):
    """Σ wᵢ xᵢ + b: a weight for each id, which tables hold, and for each dense feature.

    Args:
        dense_features: D.
        fields: whose weights are read.
    """

    def __init__(self, dense_features: int, fields: Sequence[Field]):
        self.names = tuple(field.name + WEIGHT.suffix for field in fields)
        self.dense = nnx.Param(jnp.zeros(dense_features))
        self.bias = nnx.Param(jnp.zeros(()))

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns one number per example."""
        of_ids = sum(vectors[name][:, 0] for name in self.names)
        return of_ids + dense @ self.dense[...] + self.bias[...]


class FieldVectors(nnx.Module):
    """Vectors of all fields, dense features among them: xⱼ vⱼ, with a vector vⱼ for each.

    This is how factorization machines read numbers. They start from N(0, 0.01²).

    Args:
        dense_features: D.
        fields: n, of one width d.
        rngs: of the initial values.
    """

    def __init__(self, dense_features: int, fields: Sequence[Field], *, rngs: nnx.Rngs):
        self.names = tuple(field.name for field in fields)
        init = jax.nn.initializers.normal(SMALL)
        shape = (dense_features, common_width(fields))
        self.dense = nnx.Param(init(rngs.params(), shape))

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B F d"]:
        """Returns F = n + D vectors per example."""
        of_ids = jnp.stack([vectors[name] for name in self.names], axis=1)
        return jnp.concatenate([of_ids, dense[:, :, None] * self.dense[...]], axis=1)
