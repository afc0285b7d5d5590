"""The native interaction against NumPy, and training with it against JAX."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given
from hypothesis import strategies as st

from dlrm_jax import backend
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.dlrm import DLRM
from dlrm_jax.models.fields import Field
from dlrm_jax.native import layers, ops
from dlrm_jax.presets import preset
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import generated_batches
from dlrm_jax.training.native_model import (
    dot,
    has_native_layers,
    use_native_layers,
)
from dlrm_jax.training.step import make_predict, make_train_step
from experiments.benchmarks.roofline import matrix_flops
from experiments.characterize.cost import class_costs
from experiments.characterize.hlo import Program


@example(batch=0, count=2, dim=1, self_interaction=False, columns=False, short=True, seed=0)
@example(batch=1, count=30, dim=40, self_interaction=True, columns=True, short=True, seed=0)
@given(
    batch=st.integers(0, 200),
    count=st.integers(2, 30),
    dim=st.integers(1, 40),
    self_interaction=st.booleans(),
    columns=st.booleans(),
    short=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_values_and_cotangents(batch, count, dim, self_interaction, columns, short, seed):
    rng = np.random.default_rng(seed)
    dtype = jnp.bfloat16 if short else jnp.float32
    stack = rng.normal(size=(count, batch, dim)).astype(np.float32)
    i, j = np.tril_indices(count, 0 if self_interaction else -1)
    cotangent = rng.normal(size=(dim + len(i), batch)).astype(dtype)

    def run(x, vectors):
        if columns:
            return dot(x.T, vectors, self_interaction, columns=True, dtype=dtype)
        return dot(x, vectors, self_interaction, dtype=dtype).T

    @jax.jit  # one compilation instead of one for each operation
    def both(x, vectors, cotangent):
        z, back = jax.vjp(run, x, vectors)
        return z, back(cotangent)

    z, (d_x, d_vectors) = both(stack[0], list(stack[1:]), cotangent)

    exact = stack.astype("f8")
    expected = np.concatenate([exact[0].T, (exact[i] * exact[j]).sum(axis=2)])
    assert z.dtype == dtype
    rounding = 2**-8 if short else 0
    np.testing.assert_allclose(np.asarray(z, "f8"), expected, rtol=1e-5 + rounding, atol=2e-5)
    cotangent = cotangent.astype("f8")
    wanted = np.zeros_like(exact)
    for pair, g in zip(zip(i, j, strict=True), cotangent[dim:], strict=True):
        wanted[pair[0]] += g[:, None] * exact[pair[1]]
        wanted[pair[1]] += g[:, None] * exact[pair[0]]
    wanted[0] += cotangent[:dim].T
    np.testing.assert_allclose(d_x, wanted[0], rtol=1e-4, atol=1e-4)
    for found, vectors in zip(d_vectors, wanted[1:], strict=True):
        np.testing.assert_allclose(found, vectors, rtol=1e-4, atol=1e-4)


def config(kernels: str, **changes: Any) -> Config:
    defaults: dict[str, Any] = {
        "table_rows": (50, 300, 600),
        "bag_lengths": (1, 3, 2),
        "embedding_dim": 8,
        "bottom_mlp": (16, 8),
        "top_mlp": (16, 1),
        "batch_size": 64,
        "kernels": kernels,
    }
    return dataclasses.replace(preset("small"), **(defaults | changes))


def test_kernels_that_are_demanded_must_run():
    changes = {"model": "fm", "optimizer": "adam", "bag_lengths": (1,)}
    with pytest.raises(UserError, match=r"kernels: native demands .* one of lookups, updates, mod"):
        make_learner(config("native", **changes), make_mesh("1x1"))
    for one in ({"optimizer": "sgd"}, {"bag_lengths": (1, 1, 2)}, {"model": "dlrm"}):
        learner = make_learner(config("native", **(changes | one)), make_mesh("1x1"))
        assert sum("native" in kind for kind in learner.kernels_in_use.values()) == 1
    make_learner(config("auto", **changes), make_mesh("1x1"))


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        pytest.param(
            "1x1", {"self_interaction": True, "dense_features": 0}, marks=pytest.mark.thorough
        ),
        # With other seeds a sum near 0 may have another sign, and a ReLU another derivative.
        pytest.param("1x1", {"compute_dtype": "bfloat16", "seed": 3}, marks=pytest.mark.thorough),
        pytest.param("2x4", {"optimizer": "rowwise_adagrad"}, marks=pytest.mark.thorough),
        pytest.param(
            "2x4",
            {"compression": "mixed_dimensions", "compress_above": 100},
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_training_is_that_of_jax(
    mesh: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        backend, "CPU", dataclasses.replace(backend.CPU, dense_chunk=4, native_chunk=4)
    )  # several, also on each of eight devices
    found = {}
    for chosen in ("native", "jax"):
        described = config(chosen, **changes)
        learner = make_learner(described, make_mesh(mesh))
        assert learner.kernels_in_use["model"] == chosen
        step, state, losses = make_train_step(learner), learner.init(described.seed), []
        batches = [learner.put(batch) for batch in generated_batches(described, 3)]
        for batch in batches:
            state, loss = step(state, batch)
            losses.append(float(loss))
        logits = make_predict(learner)(state, batches[0])
        found[chosen] = losses, [logits, *jax.tree.leaves(state.params)]
    rounding = 1000 if "compute_dtype" in changes else 1
    np.testing.assert_allclose(found["native"][0], found["jax"][0], rtol=1e-5 * rounding)
    for a, b in zip(found["native"][1], found["jax"][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4 * rounding, atol=1e-5 * rounding)


def test_a_model_of_native_layers_alone_takes_larger_chunks():
    mesh, whole = make_mesh("1x1"), {"interaction": "dot", "compute_dtype": "bfloat16"}
    found = [
        make_learner(config("native", **changes), mesh).dense_chunk
        for changes in (whole, whole | {"normalization": "layer"}, {"compute_dtype": "float32"})
    ]
    chunks = backend.CPU.native_chunk, backend.CPU.dense_chunk
    assert found == [chunks[0 if layers.supports_bfloat16() else 1], chunks[1], chunks[1]]


def test_steps_and_predictions_have_them():
    learner = make_learner(config("native"), make_mesh("1x1"))
    (batch,) = map(learner.put, generated_batches(config("native"), 1))
    state = learner.init(0)
    train: Any = make_train_step(learner)
    predict: Any = make_predict(learner)
    assert "dlrm_jax_interact_back" in train.lower(state, batch).as_text()
    assert "dlrm_jax_interact" in predict.lower(state, batch).as_text()


dot_of_columns = functools.partial(dot, columns=True)


def send_cotangents(x, vectors, cotangent):
    return jax.vjp(dot_of_columns, x, vectors)[1](cotangent)


@pytest.mark.parametrize(
    ("function", "given", "flops"),
    [
        (dot_of_columns, [(16, 5)], 2 * 6 * 16 * 5),
        (dot, [(5, 16)], 2 * 6 * 16 * 5),
        (functools.partial(dot, self_interaction=True), [(5, 16)], 2 * 10 * 16 * 5),
        (send_cotangents, [(16, 5), (16 + 6, 5)], 4 * 6 * 16 * 5),
    ],
)
def test_its_operations_are_counted_in_functions_and_programs(function, given, flops):
    x, *cotangent = map(jnp.ones, given)
    args = x, [jnp.ones((5, 16))] * 3, *cotangent
    assert matrix_flops(function, *args) == flops
    program = Program(jax.jit(function).lower(*args).compile().as_text() or "")
    assert sum(cost.flops for cost in class_costs(program, frozenset()).values()) == flops


@pytest.mark.parametrize("columns", [False, True])
def test_vectors_of_other_shapes_are_refused(columns: bool):
    x, vectors = jnp.ones((5, 16)), [jnp.ones((5, 17))]
    with pytest.raises(ValueError, match=r"pooled vectors of shape \(5, 16\), got \(5, 17\)"):
        ops.interact(x.T if columns else x, vectors, False, columns)


def test_a_cotangent_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"cotangent of shape \(17, 5\), got \(18, 5\)"):
        ops.interact_back(jnp.ones((18, 5)), jnp.ones((16, 5)), [jnp.ones((5, 16))], False, True)


@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_a_model_of_higher_precision_is_left_to_jax(training: bool):
    with jax.enable_x64(True):
        model = DLRM(4, [Field("a", 8)], (8,), (1,), rngs=nnx.Rngs(0), dtype="float64")
        use_native_layers(model, training)
        assert has_native_layers(model)
        logits = functools.partial(model, jnp.ones((3, 4)))
        text = jax.jit(logits).lower({"a": jnp.ones((3, 8), "f4")}).as_text()
    assert "dlrm_jax_interact" not in text
    assert "f64" in text


class Doubled(DLRM):
    def __call__(self, dense, vectors):
        return 2 * super().__call__(dense, vectors)


def test_what_a_user_derives_is_left_alone():
    model = Doubled(4, [Field("a", 8)], (8,), (1,), rngs=nnx.Rngs(0))
    use_native_layers(model, training=True)
    assert type(model) is Doubled
    assert not has_native_layers(model)


@pytest.mark.parametrize("changes", [{"interaction": "cat"}, {"model": "dcn_v2"}])
def test_what_has_no_native_interaction_says_so(changes: dict[str, Any]):
    learner = make_learner(config("native", **changes), make_mesh("1x1"))
    assert learner.kernels_in_use["model"] == "jax"
