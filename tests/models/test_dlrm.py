import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlrm_jax.errors import UserError
from dlrm_jax.models.dlrm import DLRM
from dlrm_jax.models.fields import Field
from dlrm_jax.models.mlp import MLP
from dlrm_jax.presets import PRESETS
from dlrm_jax.training.model import fields_of

VECTORS = {"a": 8, "b": 8, "c": 8}
FIELDS = [Field(name, width) for name, width in VECTORS.items()]


def model(dtype="float32", seed=0, **options):
    return DLRM(4, FIELDS, (16, 8), (12, 1), rngs=nnx.Rngs(seed), dtype=dtype, **options)


def parameters(layer: Any):
    return layer.kernel.get_value(), layer.bias.get_value()


def batch(size=64):
    rng = np.random.default_rng(0)
    pooled = {name: jnp.asarray(rng.normal(size=(size, w)), "f4") for name, w in VECTORS.items()}
    return jnp.asarray(rng.normal(size=(size, 4)), jnp.float32), pooled


@pytest.mark.parametrize("name", PRESETS)
def test_layer_widths_of_the_presets(name):
    config = PRESETS[name]
    fields = fields_of(config)
    shapes = nnx.eval_shape(
        lambda: DLRM(
            config.dense_features,
            fields,
            config.bottom_mlp,
            config.top_mlp,
            interaction=config.interaction,
            self_interaction=config.self_interaction,
            rngs=nnx.Rngs(0),
        )
    )
    F = len(fields) + 1
    z = config.embedding_dim + F * (F - 1) // 2
    for mlp, widths in (
        (shapes.bottom, (config.dense_features, *config.bottom_mlp)),
        (shapes.top, (z, *config.top_mlp)),
    ):
        layers = [parameters(layer) for layer in mlp.layers]
        expected = [((m, n), (n,)) for m, n in itertools.pairwise(widths)]
        assert [(weight.shape, bias.shape) for weight, bias in layers] == expected
        assert {x.dtype for layer in layers for x in layer} == {jnp.dtype("float32")}


def test_initial_values_have_the_references_variances():
    mlp = MLP([367, 512, 256, 1], last_relu=False, rngs=nnx.Rngs(0))
    for layer in mlp.layers:
        weight = np.asarray(layer.kernel[...])
        n = weight.size
        variance = 2 / sum(weight.shape)
        # A sample's variance has a relative deviation of sqrt(2 / n); five of them.
        assert weight.var() == pytest.approx(variance, rel=5 * (2 / n) ** 0.5)
        assert abs(weight.mean()) < 5 * (variance / n) ** 0.5
        assert np.abs(weight).max() > 2.2 * variance**0.5  # normal, not truncated or uniform
    # Biases, over enough layers of one width to have a variance.
    biases = np.concatenate(
        [parameters(layer)[1] for layer in MLP([64] * 40, last_relu=True, rngs=nnx.Rngs(1)).layers]
    )
    assert biases.var() == pytest.approx(1 / 64, rel=5 * (2 / biases.size) ** 0.5)
    assert abs(biases.mean()) < 5 * (1 / 64 / biases.size) ** 0.5


def test_a_relu_follows_every_layer_but_the_logits():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 4)), jnp.float32)
    assert np.min(MLP([4, 8, 3], last_relu=True, rngs=nnx.Rngs(0))(x)) == 0
    last = MLP([4, 8, 3], last_relu=False, rngs=nnx.Rngs(0))
    (w0, b0), (w1, b1) = map(parameters, last.layers)
    expected = np.maximum(x @ w0 + b0, 0) @ w1 + b1
    np.testing.assert_allclose(last(x), expected, rtol=1e-4, atol=1e-5)
    assert np.min(expected) < 0


@pytest.mark.parametrize("kind", ["dot", "cat"])
def test_logits_follow_the_papers_forward_pass(kind):
    net = model(interaction=kind)
    dense, pooled = batch()

    def mlp(module, x, last_relu):
        for i, layer in enumerate(module.layers):
            x = x @ np.asarray(layer.kernel[...], "f8") + np.asarray(layer.bias[...], "f8")
            x = np.maximum(x, 0) if last_relu or i + 1 < len(module.layers) else x
        return x

    x = mlp(net.bottom, np.asarray(dense, "f8"), True)
    stack = np.stack([x, *(np.asarray(pooled[name], "f8") for name in "abc")], axis=1)
    if kind == "cat":
        z = stack.reshape(len(x), -1)
    else:
        products = [(stack[:, i] * stack[:, j]).sum(1) for i in range(4) for j in range(i)]
        z = np.concatenate([x, np.stack(products, axis=1)], axis=1)
    found = jax.jit(lambda dense, pooled: net(dense, pooled))(dense, pooled)
    np.testing.assert_allclose(found, mlp(net.top, z, False)[:, 0], 1e-4, 1e-4)


def test_the_order_of_the_pooled_vectors_is_the_descriptions():
    net = model()
    dense, pooled = batch()
    reordered = {name: pooled[name] for name in ("c", "a", "b")}
    np.testing.assert_array_equal(net(dense, pooled), net(dense, reordered))


def test_bfloat16_computes_float32_logits_close_to_the_others():
    dense, pooled = batch()
    exact, low = model()(dense, pooled), model("bfloat16")(dense, pooled)
    assert low.dtype == jnp.float32
    error = np.abs(np.asarray(low) - np.asarray(exact))
    assert 0 < error.max() < 0.03 * np.abs(exact).max()
    params = jax.tree.leaves(nnx.state(model("bfloat16"), nnx.Param))
    assert all(p.dtype == jnp.float32 for p in params)


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"bottom MLP's output, 8; got \{'b': 4\}"):
        DLRM(4, [Field("a", 8), Field("b", 4)], (16, 8), (12, 1), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"top MLP must end in 1, the logit; got \(12, 2\)"):
        DLRM(4, FIELDS, (16, 8), (12, 2), rngs=nnx.Rngs(0))
    DLRM(4, [Field("a", 8), Field("b", 4)], (16, 8), (12, 1), interaction="cat", rngs=nnx.Rngs(0))
