"""The encoder that doesn't know the order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlrm_jax.attention.jagged import sequences_of
from dlrm_jax.models.bag_of_items import BagOfItems


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


LENGTHS, T = [3, 0, 1, 90], 128
SPANS = [(0, 3), (3, 4), (4, 94)]
VECTORS = np.random.default_rng(0).normal(size=(T, 4))


def encoded(vectors: np.ndarray) -> np.ndarray:
    encoder = BagOfItems(4, 10, rngs=nnx.Rngs(0, params=1, dropout=2))
    encoder.eval()
    sequences = sequences_of(jnp.asarray(LENGTHS, "int32"), T)
    found = np.asarray(jax.jit(lambda vectors: encoder(vectors, sequences))(vectors))
    hidden = nnx.state(encoder, nnx.Param)
    weights = [np.asarray(x) for x in jax.tree.leaves(hidden)]
    names = [x.shape for x in weights]
    assert names == [(4,), (4, 4), (4,), (4, 4)]
    bias1, first, bias2, second = weights
    for start, end in SPANS:
        for i in range(start, end):
            mean = sum(vectors[start : i + 1]) / (i + 1 - start)
            wanted = mean + np.maximum(mean @ first + bias1, 0) @ second + bias2
            np.testing.assert_allclose(found[i], wanted, rtol=1e-6, atol=1e-6)
    return found


def test_it_is_the_mean_of_the_items_so_far_in_any_order():
    other = VECTORS.copy()
    other[4:93] = other[92:3:-1]
    found, of_other = encoded(VECTORS), encoded(other)
    np.testing.assert_allclose(found[93], of_other[93], rtol=1e-6)
    assert not np.allclose(found[50], of_other[50], rtol=1e-3)
