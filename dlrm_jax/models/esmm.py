"""Entire space multi-task model (Ma et al., SIGIR 2018, arXiv 1804.07931)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.fields import Field, Model, Vectors, concatenated, concatenated_width
from dlrm_jax.models.heads import Towers, count, joined


class ESMM(Model):
    """pCTCVR = pCTR · pCVR: towers of a click, and of a conversion after a click.

    Labels are in the order in which they happen, and each needs the one before: clicked, then
    clicked and purchased. So the second label is 0 where the first is, never missing: its loss is
    over all impressions, and pCVR, the quotient of the predictions, is learned without a loss of
    its own. Further labels multiply further towers. All towers read the same vectors.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        top_mlp: widths of each label's tower; the last is 1, the logit.
        labels: names of the labels, H of them.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute.
    """

    chained_labels = True

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        labels: Sequence[str] = (),
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.fields = tuple(fields)
        self.labels = count(labels)
        width = concatenated_width(dense_features, fields)
        self.towers = Towers(width, labels, top_mlp, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, "B *_"]:
        """Returns the logits of the products: of a click, of a click with a conversion."""
        with jax.named_scope("top_mlp"):
            x = concatenated(dense, vectors, self.fields)
            logits = self.towers([x] * self.labels)
            return joined(list(itertools.accumulate(logits, logit_of_product)))


def logit_of_product(a: Float[Array, " B"], b: Float[Array, " B"]) -> Float[Array, " B"]:
    """The logit of σ(a) σ(b), exact where the product itself rounds to 0 or 1.

    p / (1 - p) of p = 1 / ((1 + e^-a)(1 + e^-b)) is 1 / (e^-a + e^-b + e^-(a + b)).
    """
    return -jax.nn.logsumexp(jnp.stack([-a, -b, -(a + b)]), axis=0)
