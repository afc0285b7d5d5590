"""Dense features as fields: xⱼ vⱼ, for models that read vectors, weights and sequences."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlrm_jax.models.fields import Field, Model
from dlrm_jax.models.numeric import VECTORS, NumericEmbedding, numeric_fields
from dlrm_jax.models.zoo import MODELS

B, D, WIDTH = 5, 3, 4
FIELDS = [Field("a", WIDTH), Field("numeric.b", WIDTH)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dcn_v2", {"bottom_mlp": (), "top_mlp": (6, 1)}),
        ("deepfm", {"top_mlp": (6, 1)}),
    ],
)
def test_a_model_reads_numbers_like_vectors_of_tables(name: str, options: dict[str, Any]):
    kind: Any = MODELS[name]
    numeric = numeric_fields(D, FIELDS, WIDTH)
    assert [field.name for field in numeric] == ["_numeric.1", "_numeric.2", "_numeric.3"]
    inner: Model = kind(0, (*numeric, *FIELDS), **options, rngs=nnx.Rngs(0))
    model = NumericEmbedding(inner, numeric, rngs=nnx.Rngs(1))
    rng = np.random.default_rng(2)
    dense, vectors, embedded = rng.normal(size=(B, D)), {}, {}
    for read in kind.reads(FIELDS[0]):
        width = read.width or WIDTH
        for field in FIELDS:
            vectors[field.name + read.suffix] = jnp.asarray(rng.normal(size=(B, width)), "f4")
        trained = getattr(model, VECTORS)[read.suffix.strip(".") or "vector"]
        trained[...] = jnp.asarray(rng.normal(size=(D, width)), "f4")
        for j, field in enumerate(numeric):
            product = [[x * v for v in np.array(trained[...])[j]] for x in dense[:, j]]
            embedded[field.name + read.suffix] = jnp.asarray(product, "f4")
    found = model(jnp.asarray(dense, "f4"), vectors)
    expected = inner(jnp.zeros((B, 0)), vectors | embedded)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
