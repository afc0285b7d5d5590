"""Wukong (arXiv 2403.02545): stacked factorization machines."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import (
    Field,
    FieldVectors,
    Model,
    Vectors,
    check_positive,
    common_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP, at_least_float32
from dlrm_jax.models.tokens import EPSILON


class WukongLayer(nnx.Module):
    """X' = LN(concat(FMB(X), LCB(X)) + X), a row for each vector.

    The linear compression LCB(X) = W X mixes vectors. The factorization machine block
    FMB(X) = MLP(LN(X Xᵀ Y)), flat and then in rows again, has products of all pairs, which a
    learned Y [n, k] compresses, the paper's optimized FM. Where the layer changes the number of
    vectors, X becomes R X in the sum.

    Args:
        count: number of vectors of X, n.
        width: their width, d.
        fmb: number of vectors that the factorization machine block returns.
        lcb: number of vectors that the linear compression returns.
        rank: k.
        fmb_mlp: hidden widths of the block's MLP, with a ReLU after each.
        rngs: random number generators of the initial values.
        dtype: type in which the MLP computes.
    """

    def __init__(
        self,
        count: int,
        width: int,
        fmb: int,
        lcb: int,
        rank: int,
        fmb_mlp: Sequence[int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        init = jax.nn.initializers.glorot_normal()
        self.compression = nnx.Param(init(rngs.params(), (count, rank)))
        self.inner_norm = nnx.LayerNorm(count * rank, epsilon=EPSILON, rngs=rngs)
        widths = (count * rank, *fmb_mlp, fmb * width)
        self.mlp = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)
        self.linear = nnx.Param(init(rngs.params(), (count, lcb)))
        if count != fmb + lcb:
            self.residual = nnx.Param(init(rngs.params(), (count, fmb + lcb)))
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x: Float[Array, "B n d"]) -> Float[Array, "B m d"]:
        """Returns m = fmb + lcb vectors."""
        # Xᵀ Y first: X Xᵀ, which is larger, is never made.
        compressed = jnp.einsum("bnd,nk->bdk", x, self.compression[...])
        products = jnp.einsum("bnd,bdk->bnk", x, compressed)
        flat = self.inner_norm(products.reshape(x.shape[0], -1))
        machine = at_least_float32(self.mlp(flat)).reshape(x.shape[0], -1, x.shape[2])
        linear = jnp.einsum("bnd,nm->bmd", x, self.linear[...])
        if hasattr(self, "residual"):
            x = jnp.einsum("bnd,nm->bmd", x, self.residual[...])
        return self.norm(jnp.concatenate([machine, linear], axis=1) + x)


class Wukong(Model):
    """Layers of factorization machines, and an MLP on all vectors of the last one.

    A dense feature's vector is its number times a trained one; the paper makes them by an MLP.
    Vectors have one width, where the paper also splits wide ones.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d.
        top_mlp: widths of the MLP; the last is 1, the logit.
        layers: number of layers.
        fmb: number of vectors of each factorization machine block, n_F.
        lcb: number of vectors of each linear compression, n_L.
        rank: width k to which products are compressed.
        fmb_mlp: hidden widths of the blocks' MLPs.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute; products of vectors stay in at least float32.

    Raises:
        UserError: the vectors differ in width, or a number isn't positive.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        layers: int = 2,
        fmb: int = 16,
        lcb: int = 16,
        rank: int = 8,
        fmb_mlp: tuple[int, ...] = (128,),
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        check_positive(layers=layers, fmb=fmb, lcb=lcb, rank=rank)
        self.field_vectors = FieldVectors(dense_features, fields, rngs=rngs)
        width = common_width(fields)
        counts = (dense_features + len(fields), *[fmb + lcb] * (layers - 1))
        self.layers = nnx.List(
            WukongLayer(count, width, fmb, lcb, rank, fmb_mlp, rngs=rngs, dtype=dtype)
            for count in counts
        )
        widths = ((fmb + lcb) * width, *hidden(top_mlp), 1)
        self.top = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        x = self.field_vectors(dense, vectors)
        with jax.named_scope("interaction"):
            for layer in self.layers:
                x = layer(x)
        with jax.named_scope("top_mlp"):
            return at_least_float32(self.top(x.reshape(x.shape[0], -1))[:, 0])
