"""xDeepFM (arXiv 1803.05170): a compressed interaction network beside an MLP."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import (
    SMALL_VECTOR,
    WEIGHT,
    Field,
    FieldVectors,
    FirstOrder,
    Model,
    Read,
    Vectors,
    common_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP


class CIN(nnx.Module):
    """Xᵏ_h = Σ_{i,j} Wᵏ_hij (Xᵏ⁻¹_i ∘ X⁰_j), each summed over its elements (equations 6 to 8).

    Args:
        fields: number of fields, m, the rows of X⁰.
        widths: numbers of rows of X¹, X², …: H₁, H₂, ….
        rngs: random number generators of the initial values.
    """

    def __init__(self, fields: int, widths: Sequence[int], *, rngs: nnx.Rngs):
        init = jax.nn.initializers.glorot_normal()
        inputs = [fields, *widths[:-1]]
        self.weights = nnx.List(
            nnx.Param(init(rngs.params(), (rows, width * fields)))
            for rows, width in zip(inputs, widths, strict=True)
        )

    def __call__(self, first: Float[Array, "B m d"]) -> Float[Array, "B H"]:
        """Returns H = ΣHₖ numbers per example, one for each row of each layer."""
        # Elements in front: a layer is one matrix product with Wᵏ as [i, (h, j)], whose result is
        # multiplied by X⁰ and summed over j. All products Xᵏ⁻¹_i ∘ X⁰_j, written down, would be
        # several times as large.
        first = x = first.transpose(0, 2, 1)
        sums = []
        for weight in self.weights:
            products = (x @ weight[...]).reshape(*x.shape[:2], -1, first.shape[2])
            x = jnp.sum(products * first[:, :, None], axis=3)
            sums.append(jnp.sum(x, axis=1))
        return jnp.concatenate(sums, axis=1)


class XDeepFM(Model):
    """ŷ = linear + CIN + deep (section 3.3).

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d.
        top_mlp: widths of the deep part; the last is 1, the logit.
        cin: widths of the layers of the compressed interaction network.
        rngs: random number generators of the initial values.
        dtype: type in which the MLP computes.
    """

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """A weight and a vector for each id."""
        return (SMALL_VECTOR, WEIGHT)

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        cin: tuple[int, ...] = (16, 16),
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        count = dense_features + len(fields)
        self.linear = FirstOrder(dense_features, fields)
        self.field_vectors = FieldVectors(dense_features, fields, rngs=rngs)
        self.cin = CIN(count, cin, rngs=rngs)
        self.cin_output = nnx.Param(
            jax.nn.initializers.glorot_normal()(rngs.params(), (sum(cin), 1))
        )
        widths = (count * common_width(fields), *hidden(top_mlp), 1)
        self.deep = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        fields = self.field_vectors(dense, vectors)
        with jax.named_scope("interaction"):
            explicit = (self.cin(fields) @ self.cin_output[...])[:, 0]
        with jax.named_scope("top_mlp"):
            deep = self.deep(fields.reshape(fields.shape[0], -1))[:, 0]
        return self.linear(dense, vectors) + explicit + deep
