import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.training.losses import LOSSES, bce, class_weighted, mse

LOGITS = jnp.array([-3.0, -0.5, 0.0, 0.5, 3.0] * 2)
LABELS = jnp.array([0.0] * 5 + [1.0] * 5)


def test_values_are_those_of_the_formulas():
    z, y = np.asarray(LOGITS, "f8"), np.asarray(LABELS, "f8")
    p = 1 / (1 + np.exp(-z))
    cross_entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    np.testing.assert_allclose(bce(LOGITS, LABELS), cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(mse(LOGITS, LABELS), (p - y) ** 2, rtol=1e-5)
    assert {"bce": bce, "mse": mse} == LOSSES


@pytest.mark.parametrize("loss", LOSSES.values())
def test_class_weights_multiply_the_samples_of_their_class(loss):
    plain = np.asarray(loss(LOGITS, LABELS))
    weighted = class_weighted(loss, 0.5, 3.0)(LOGITS, LABELS)
    np.testing.assert_allclose(weighted[:5], 0.5 * plain[:5], rtol=1e-6)
    np.testing.assert_allclose(weighted[5:], 3.0 * plain[5:], rtol=1e-6)
    np.testing.assert_array_equal(class_weighted(loss, 1.0, 1.0)(LOGITS, LABELS), plain)
    np.testing.assert_allclose(class_weighted(loss, 0.0, 2.0)(LOGITS, LABELS)[:5], 0)


@pytest.mark.parametrize("loss", LOSSES.values())
@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(loss, logit):
    logits, labels = jnp.full(2, logit), jnp.array([0.0, 1.0])
    value, gradient = jax.value_and_grad(lambda z: loss(z, labels).sum())(logits)
    expected = abs(logit) if loss is bce else 1  # of the sample that is wrong
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.all(np.isfinite(gradient))
