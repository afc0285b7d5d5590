import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlrm_jax.models.linear import Linear


def layer(fan_in: int, fan_out: int, relu: bool, dtype: str = "float32") -> Linear:
    init = jax.nn.initializers.normal(0.5)
    return Linear(
        fan_in, fan_out, relu=relu, weight_init=init, bias_init=init, rngs=nnx.Rngs(0), dtype=dtype
    )


# Few outputs and many take different ways back; 4096 is where jaxlib 0.10.2 computes nonsense.
@pytest.mark.parametrize(("batch", "fan_out"), [(3, 1), (64, 8), (64, 9), (4096, 96)])
@pytest.mark.parametrize("relu", [False, True])
def test_values_and_gradients(batch: int, fan_out: int, relu: bool):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 40)).astype(np.float32)
    cotangent = rng.normal(size=(batch, fan_out)).astype(np.float32)
    graph, params = nnx.split(layer(40, fan_out, relu))
    y, back = jax.vjp(lambda params, x: nnx.merge(graph, params)(x), params, x)
    by_layer, by_x = back(jnp.asarray(cotangent))

    weight = np.asarray(params["weight"][...], "f8")
    expected = x.astype("f8") @ weight.T + np.asarray(params["bias"][...], "f8")
    g = np.where(expected > 0, cotangent, 0) if relu else cotangent.astype("f8")
    np.testing.assert_allclose(y, np.maximum(expected, 0) if relu else expected, 1e-4, 1e-4)
    np.testing.assert_allclose(by_x, g @ weight, 1e-4, 1e-4)
    np.testing.assert_allclose(by_layer["weight"][...], g.T @ x.astype("f8"), 1e-4, 1e-3)
    np.testing.assert_allclose(by_layer["bias"][...], g.sum(axis=0), 1e-4, 1e-3)


def test_the_last_axis_is_what_it_applies_to():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 4)), jnp.float32)
    linear = layer(4, 2, relu=True)
    np.testing.assert_allclose(linear(x)[:, 1], linear(x[:, 1]), rtol=1e-6)
    assert linear(x[0, 0]).shape == (2,)


def test_low_precision_keeps_parameters_and_their_gradients_in_float32():
    graph, params = nnx.split(layer(4, 16, relu=True, dtype="bfloat16"))
    x = jnp.ones((8, 4))
    assert nnx.merge(graph, params)(x).dtype == jnp.bfloat16
    gradients = jax.grad(lambda params: nnx.merge(graph, params)(x).sum().astype("f4"))(params)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
