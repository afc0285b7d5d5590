"""The interface of models: categorical fields, dense features, and the vectors that models read."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dlrm_jax.errors import UserError

SMALL = 0.01
"""Standard deviation of small initial values."""

Vectors = Mapping[str, Float[Array, "B *_"]]
"""Vectors by name (the field's, plus the suffix of a `Read`), [B, width] or [B, max_ids, width]."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One categorical input of a model.

    Attributes:
        name: name of its vector.
        width: width of that vector, d.
        max_ids: maximum number of ids of an example.
    """

    name: str
    width: int
    max_ids: int = 1


@dataclasses.dataclass(frozen=True)
class Read:
    """One vector that a model reads of a field; each comes from its own table.

    Attributes:
        suffix: suffix of its name, after the field's.
        width: width of the vector; None for the field's.
        init: initial values of the table: the DLRM reference's uniform values, N(0, 0.01²), or
            zeros.
        sequence: whether to read one vector for each id, [max_ids, width], instead of their sum or
            mean.
    """

    suffix: str = ""
    width: int | None = None
    init: Literal["uniform", "small", "zeros"] = "uniform"
    sequence: bool = False


VECTOR = Read()
SMALL_VECTOR = Read(init="small")
"""A vector with small initial values. In sums of many products, larger ones are mere noise."""
WEIGHT = Read(".weight", width=1, init="zeros")
"""A number for each id: the weight of a linear model."""


class Model(nnx.Module):
    """From dense features and vectors to logits; knows no tables and no mesh.

    A model is one class: what it reads of each field, its parameters, and its formula. It is made
    as ``Class(dense_features, fields, rngs=…, **options)``, of the number D of dense features, the
    categorical inputs, and random number generators for the initial values. Options that have the
    names of fields of the run's config come from there: ``top_mlp``, the widths of the layers that
    end in 1, the logit. ``dtype`` is the type in which MLPs compute. All other options come from
    ``model_options``.

    A model with an option ``labels``, the names of the labels, takes several of them, H: it returns
    logits [B, H] in their order, and [B] if there is one. Where its class says
    ``chained_labels = True``, each label needs those before it, as a purchase needs a click: data
    in which a label is above an earlier one, or missing where an earlier one is 0, are refused.

    In predictions an example's logit depends on that example alone. In training there may be layers
    such as `nnx.Dropout` and `nnx.BatchNorm`, which then has statistics of the whole batch.
    """

    chained_labels: ClassVar[bool] = False

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """The vectors that the model reads of a field: by default one."""
        return (VECTOR,)

    @abc.abstractmethod
    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B *_"]:
        """Returns the logits; their sigmoid is the click probability, or that of each label."""


def concatenated(
    dense: Float[Array, "B D"], vectors: Vectors, fields: Sequence[Field]
) -> Float[Array, "B W"]:
    """Dense features and the fields' vectors, side by side."""
    return jnp.concatenate([dense, *(vectors[field.name] for field in fields)], axis=1)


def concatenated_width(dense_features: int, fields: Sequence[Field]) -> int:
    """The width of `concatenated`, W."""
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
    """The width d of all vectors.

    Raises:
        UserError: the widths differ.
    """
    widths = {field.name: field.width for field in fields}
    if len(set(widths.values())) != 1:
        raise UserError(f"the model needs vectors of one width, got {widths}")
    return fields[0].width


def split_histories(
    model: str, fields: Sequence[Field], target: str
) -> tuple[dict[str, int], tuple[Field, ...]]:
    """The widths of the fields of one id, by name, and the histories, those of several.

    Args:
        model: name of the model, for messages.
        fields: the categorical inputs.
        target: name of the field of one id that histories are asked about.

    Raises:
        UserError: there is no history, or no such target of the same width.
    """
    widths = {field.name: field.width for field in fields if field.max_ids == 1}
    histories = tuple(field for field in fields if field.max_ids > 1)
    if not histories:
        raise UserError(f"{model} needs a history: a field with several ids; all have one")
    if target not in widths:
        known = ", ".join(widths) or "there is none"
        raise UserError(f"target: expected a field of one id ({known}), got {target!r}")
    if any(field.width != widths[target] for field in histories):
        raise UserError(f"{model} needs histories as wide as their target")
    return widths, histories


def check_positive(**numbers: float) -> None:
    """Checks options that are numbers of layers, widths and the like.

    Args:
        numbers: numbers by the names of their options.

    Raises:
        UserError: one is less than 1.
    """
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"model_options: {name}: expected at least 1, got {number}")


def check_share(**shares: float) -> None:
    """Checks options that are shares, such as those of dropout.

    Args:
        shares: shares by the names of their options.

    Raises:
        UserError: one is negative or not less than 1.
    """
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UserError(
                f"model_options: {name}: expected 0 or more, and less than 1, got {share}"
            )


def check_divides(parts_name: str, parts: int, name: str, width: int) -> None:
    """Checks that a width can be split into equal parts.

    Args:
        parts_name: name of the number of parts.
        parts: number of parts.
        name: name of the width.
        width: width to split.

    Raises:
        UserError: it can't.
    """
    if parts < 1 or width % parts:
        raise UserError(
            f"model_options: {parts_name}: expected a number that divides {name}, {width}, got "
            f"{parts}"
        )


class FirstOrder(nnx.Module):
    """Σ wᵢ xᵢ + b, with a weight for each id, stored in tables, and for each dense feature.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
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

    This is how factorization machines read numbers. The vectors start from N(0, 0.01²).

    Args:
        dense_features: number of dense features, D.
        fields: the n categorical inputs, all of one width d.
        rngs: random number generators of the initial values.
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
