"""Vectors that are made of others, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dlrm_jax.models.composed import (
    ComposedEmbeddings,
    LearnedPooling,
    Projection,
    QuotientRemainder,
)
from dlrm_jax.models.fields import Model

B, WIDTH = 5, 4


def test_represented_vectors():
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(size=(B, WIDTH)).astype("f4") for name in ("q", "r", "whole")}
    vectors["narrow"] = rng.normal(size=(B, 2)).astype("f4")
    vectors["sequence"] = rng.normal(size=(B, 3, WIDTH)).astype("f4")
    vectors["weights"] = rng.normal(size=(B, 3, 1)).astype("f4")
    on_device = jax.tree.map(jnp.asarray, vectors)
    projection = Projection("narrow", 2, WIDTH, rngs=nnx.Rngs(0))
    q, r = vectors["q"], vectors["r"]
    pooled = sum(vectors["sequence"][:, i] * vectors["weights"][:, i] for i in range(3))
    for part, wanted in (
        (QuotientRemainder("q", "r", "product"), q * r),
        (QuotientRemainder("q", "r", "sum"), q + r),
        (QuotientRemainder("q", "r", "concat"), np.concatenate([q, r], axis=1)),
        (projection, vectors["narrow"] @ np.asarray(projection.weight[...])),
        (LearnedPooling("sequence", "weights"), pooled),
    ):
        np.testing.assert_allclose(part(on_device), wanted, rtol=1e-5, atol=1e-6)

    class Reader(Model):
        def __call__(self, dense, vectors):
            return dense[:, 0] + vectors["whole"][:, 0] + vectors["made"][:, 1]

    model = ComposedEmbeddings(Reader(), {"made": QuotientRemainder("q", "r", "product")})
    dense = jnp.ones((B, 1))
    np.testing.assert_allclose(
        model(dense, on_device), 1 + vectors["whole"][:, 0] + (q * r)[:, 1], rtol=1e-5
    )
