"""The weights of several labels; the exactness of a step is in `test_exactness`."""

import jax.numpy as jnp
import numpy as np

from dlrm_jax.data.batches import Batch
from dlrm_jax.training.label_weights import by_label

NAN = float("nan")


def weighted(labels: list[list[float]], weights: list[float]) -> tuple[Batch, bool]:
    batch = Batch(None, None, jnp.array(labels), jnp.array(weights))
    found, any_weight = by_label(batch, [1.0, 0.5])
    return found, bool(any_weight)


def test_each_label_has_its_weight_over_the_examples_that_have_it():
    found, any_weight = weighted([[1, NAN], [0, 1], [NAN, 0]], [1.0, 3.0, 2.0])
    assert any_weight
    np.testing.assert_allclose(found.sample_weights, [[0.25, 0], [0.75, 0.3], [0, 0.2]], rtol=1e-6)
    assert np.asarray(found.labels).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_a_label_that_no_example_has_adds_nothing():
    found, any_weight = weighted([[1, NAN], [0, NAN]], [1.0, 1.0])
    assert any_weight
    assert np.asarray(found.sample_weights).tolist() == [[0.5, 0], [0.5, 0]]


def test_a_batch_without_weight_is_told_apart():
    """The loss of its step is then not a number, as with one label."""
    assert not weighted([[1, NAN], [0, 1]], [0.0, 0.0])[1]
