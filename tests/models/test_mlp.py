import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from as_users import OPTIMIZED
from flax import nnx

from dlrm_jax.models.mlp import MLP
from dlrm_jax.training.native_model import mlp_of_columns

WIDTHS = [13, 40, 96, 1]
OFTEN = [(1, True, False), (50, True, True), (4096, False, False), (4096, False, True)]


called = nnx.jit(lambda mlp, x: mlp(x))


def by_hand(layers, x, cotangent, last_relu):
    """The result, and the cotangents of the input and of each layer's parameters, in float64."""
    inputs, masks = [], []
    for i, (kernel, bias) in enumerate(layers):
        inputs.append(x)
        x = x @ kernel + bias
        masks.append((x > 0) if last_relu or i + 1 < len(layers) else np.ones_like(x))
        x = x * masks[-1]
    back, found = cotangent, []
    for (kernel, _), given, mask in zip(layers[::-1], inputs[::-1], masks[::-1], strict=True):
        back = back * mask
        found.insert(0, (given.T @ back, back.sum(axis=0)))
        back = back @ kernel.T
    return x, back, found


# From 40 to 96 at 4096 is where jaxlib 0.10.2 computed nonsense.
@pytest.mark.parametrize(
    ("batch", "last_relu", "columns"),
    [
        pytest.param(*case, marks=() if case in OFTEN else pytest.mark.thorough)
        for case in itertools.product((1, 50, 4096), (False, True), (False, True))
    ],
)
def test_values_and_gradients(columns: bool, last_relu: bool, batch: int):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(batch, 13)), rng.normal(size=(batch, 1))
    graph, params = nnx.split(MLP(WIDTHS, last_relu=last_relu, rngs=nnx.Rngs(0)))

    def run(params, x):
        mlp = nnx.merge(graph, params)
        return mlp_of_columns(mlp, x.T).T if columns else mlp(x)

    @jax.jit
    def both(params, x, cotangent):
        y, back = jax.vjp(run, params, x)
        return y, back(cotangent)

    given = params, x.astype("f4"), cotangent.astype("f4")
    y, (by_params, by_x) = both.lower(*given).compile(OPTIMIZED)(*given)
    layers = [
        (np.asarray(layer["kernel"][...], "f8"), np.asarray(layer["bias"][...], "f8"))
        for layer in params["layers"].values()
    ]
    expected, expected_by_x, expected_by_layer = by_hand(layers, x, cotangent, last_relu)
    np.testing.assert_allclose(y, expected, 1e-4, 1e-4)
    np.testing.assert_allclose(by_x, expected_by_x, 1e-4, 1e-4)
    for i, (kernel, bias) in enumerate(expected_by_layer):
        found = by_params["layers"][i]
        np.testing.assert_allclose(found["kernel"][...], kernel, 1e-4, 1e-3)
        np.testing.assert_allclose(found["bias"][...], bias, 1e-4, 1e-3)


@pytest.mark.parametrize("columns", [False, True])
def test_low_precision_keeps_parameters_and_their_gradients_in_float32(columns: bool):
    mlp = MLP([4, 16], last_relu=True, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    graph, params = nnx.split(mlp)
    x = jnp.ones((8, 4))

    def run(params):
        mlp = nnx.merge(graph, params)
        return mlp_of_columns(mlp, x.T) if columns else mlp(x)

    # Sums are float32; the formulation by columns rounds each layer's.
    assert run(params).dtype == (jnp.bfloat16 if columns else jnp.float32)
    gradients = jax.grad(lambda params: run(params).sum().astype("f4"))(params)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def normalized(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return np.maximum((x - mean) / np.sqrt(variance + 1e-5), 0)


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_normalization_comes_between_a_hidden_layer_and_its_relu(kind):
    mlp = MLP([4, 6, 1], last_relu=False, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(50, 4))
    layers = nnx.to_pure_dict(nnx.state(mlp))["layers"].values()
    (first, bias), (last, last_bias) = (
        (np.asarray(layer["kernel"], "f8"), np.asarray(layer["bias"], "f8")) for layer in layers
    )
    mlp.regularize(0.0, kind, nnx.Rngs(0))
    hidden, axis = x @ first + bias, 0 if kind == "batch" else 1
    mean, variance = hidden.mean(axis, keepdims=True), hidden.var(axis, keepdims=True)
    expected = normalized(hidden, mean, variance) @ last + last_bias
    np.testing.assert_allclose(called(mlp, jnp.asarray(x, "f4")), expected, rtol=1e-4, atol=1e-5)
    if kind == "batch":  # PyTorch's momentum of 0.1, from mean 0 and variance 1
        expected = normalized(hidden, 0.1 * mean, 0.9 + 0.1 * variance) @ last + last_bias
    mlp.eval()
    np.testing.assert_allclose(called(mlp, jnp.asarray(x, "f4")), expected, rtol=1e-4, atol=1e-5)


def test_dropout_follows_the_hidden_layers_in_training_only():
    mlp = MLP([1, 1000, 1], last_relu=False, rngs=nnx.Rngs(0))
    nnx.update(mlp, jax.tree.map(lambda x: 1.0 * (x.ndim > 1) + 0 * x, nnx.state(mlp)))
    mlp.regularize(0.25, "none", nnx.Rngs(0))
    kept = called(mlp, jnp.ones((1, 1))).item() * 0.75  # those that stay are scaled by 1 / 0.75
    assert kept == pytest.approx(750, abs=60)
    mlp.eval()
    assert called(mlp, jnp.ones((1, 1))).item() == 1000


def short_mlp(widths, rngs=None):
    return MLP(widths, last_relu=False, rngs=rngs or nnx.Rngs(0), dtype=jnp.bfloat16)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 3, 4)])
def test_low_precision_of_any_leading_shape(shape):
    mlp = short_mlp([shape[-1], 5, 2])
    wide = MLP([shape[-1], 5, 2], last_relu=False, rngs=nnx.Rngs(0))
    found, expected = (called(x, jnp.ones(shape)) for x in (mlp, wide))
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.02)
    assert found.shape == (*shape[:-1], 2)


def test_low_precision_calls_layers_of_other_kinds():
    mlp = short_mlp([4, 3, 2])
    mlp.layers[0] = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    added = nnx.LoRALinear(3, 2, lora_rank=2, rngs=nnx.Rngs(0))
    mlp.layers[1] = added
    before = called(mlp, jnp.ones((1, 4)))
    added.lora.lora_b[...] += 1
    assert not np.array_equal(before, called(mlp, jnp.ones((1, 4))))


def test_low_precision_of_several_weights_at_once():
    @nnx.vmap
    def make(key):
        return short_mlp([4, 3, 1], rngs=nnx.Rngs(key))

    mlps = make(jax.random.split(jax.random.key(0), 2))

    def loss(mlps):
        return nnx.vmap(lambda mlp, x: mlp(x), in_axes=(0, None))(mlps, jnp.ones((5, 4))).sum()

    gradients = nnx.jit(nnx.grad(loss))(mlps)
    assert {x.shape[0] for x in jax.tree.leaves(gradients)} == {2}
