"""Adaptive Factorization Network, AFN and AFN+ (arXiv 1909.03276)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import (
    VECTOR,
    Field,
    FieldVectors,
    Model,
    Read,
    Vectors,
    check_positive,
    check_share,
    common_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP, Normalization, at_least_float32

SMALLEST = 1e-5
"""Least absolute value whose logarithm is taken, as in FuxiCTR."""

DEEP = ".deep"
"""Suffix of the vectors of AFN+'s MLP."""


class LogarithmicLayer(nnx.Module):
    """yⱼ = exp(Σᵢ wⱼᵢ ln |eᵢ|): products of the fields' vectors to learned powers.

    The paper's logarithmic transformation layer. Absolute values are at least 1e-5. Both logarithms
    and results have batch normalization, with a scale and a bias for each field or neuron, as in
    FuxiCTR.

    Args:
        count: number of fields, n.
        neurons: number of results, L.
        rngs: random number generators of the initial values.
    """

    def __init__(self, count: int, neurons: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.glorot_normal()
        self.weight = nnx.Param(init(rngs.params(), (count, neurons)))
        self.log_norm, self.norm = (
            nnx.BatchNorm(features, axis=1, momentum=0.9, epsilon=1e-5, rngs=rngs)
            for features in (count, neurons)
        )

    def __call__(self, fields: Float[Array, "B n d"]) -> Float[Array, "B L d"]:
        """Returns L vectors."""
        logarithms = self.log_norm(jnp.log(jnp.maximum(jnp.abs(fields), SMALLEST)))
        return self.norm(jnp.exp(jnp.einsum("bnd,nl->bld", logarithms, self.weight[...])))


class AFN(Model):
    """An MLP on the vectors of a logarithmic layer.

    The layer has batch normalization, whatever the config's.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d.
        top_mlp: widths of the MLP; the last is 1, the logit.
        neurons: number of logarithmic neurons.
        rngs: random number generators of the initial values.
        dtype: type in which the MLP computes; the logarithmic layer stays in at least float32.

    Raises:
        UserError: there is no neuron, or the vectors differ in width.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        neurons: int = 32,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        check_positive(neurons=neurons)
        self.field_vectors = FieldVectors(dense_features, fields, rngs=rngs)
        self.logarithmic = LogarithmicLayer(dense_features + len(fields), neurons, rngs=rngs)
        widths = (neurons * common_width(fields), *hidden(top_mlp), 1)
        self.top = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        with jax.named_scope("interaction"):
            products = self.logarithmic(self.field_vectors(dense, vectors))
        with jax.named_scope("top_mlp"):
            return at_least_float32(self.top(products.reshape(products.shape[0], -1))[:, 0])


class AFNPlus(AFN):
    """w₁ AFN + w₂ deep + b, with an MLP on vectors of its own: the ensemble of AFN and a DNN.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d.
        top_mlp: widths of AFN's MLP; the last is 1, the logit.
        neurons: number of logarithmic neurons.
        deep_mlp: hidden widths of the other MLP; None for those of the first.
        dropout: share of the hidden outputs of AFN's MLP that is dropped in training.
        deep_dropout: the same of the other MLP; None for as much.
        normalization: normalization of the hidden layers of both.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute; the logarithmic layer stays in at least float32.

    Raises:
        UserError: there is no neuron, the vectors differ in width, or a share is out of range.
    """

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """Two vectors: the logarithmic layer's and the MLP's."""
        return (VECTOR, Read(DEEP))

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        neurons: int = 32,
        deep_mlp: tuple[int, ...] | None = None,
        dropout: float = 0.0,
        deep_dropout: float | None = None,
        normalization: Normalization = "none",
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        deep_dropout = dropout if deep_dropout is None else deep_dropout
        check_share(deep_dropout=deep_dropout)
        super().__init__(dense_features, fields, top_mlp, neurons=neurons, rngs=rngs, dtype=dtype)
        deep = [dataclasses.replace(field, name=field.name + DEEP) for field in fields]
        self.deep_vectors = FieldVectors(dense_features, deep, rngs=rngs)
        between = hidden(top_mlp) if deep_mlp is None else deep_mlp
        widths = ((dense_features + len(fields)) * common_width(fields), *between, 1)
        self.deep = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)
        self.top.regularize(dropout, normalization, rngs)
        self.deep.regularize(deep_dropout, normalization, rngs)
        self.output = MLP((2, 1), last_relu=False, rngs=rngs)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        product = super().__call__(dense, vectors)
        fields = self.deep_vectors(dense, vectors)
        with jax.named_scope("top_mlp"):
            deep = at_least_float32(self.deep(fields.reshape(fields.shape[0], -1))[:, 0])
            return self.output(jnp.stack([product, deep], axis=1))[:, 0]
