"""The native interaction against NumPy, and training with it against JAX."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.config import Config
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.interaction import dot, dot_of_columns
from dlrm_jax.presets import preset
from dlrm_jax.training.build import generated_batches, make_learner
from dlrm_jax.training.step import make_predict, make_train_step
from experiments.characterize.cost import class_costs
from experiments.characterize.hlo import Program
from experiments.roofline import matrix_flops


@given(
    batch=st.integers(1, 40),
    count=st.integers(2, 30),
    dim=st.integers(1, 40),
    self_interaction=st.booleans(),
    columns=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_values_and_cotangents(batch, count, dim, self_interaction, columns, seed):
    rng = np.random.default_rng(seed)
    stack = rng.normal(size=(count, batch, dim)).astype(np.float32)
    i, j = np.tril_indices(count, 0 if self_interaction else -1)
    cotangent = rng.normal(size=(dim + len(i), batch)).astype(np.float32)

    def run(x, vectors):
        if columns:
            return dot_of_columns(x.T, vectors, self_interaction)
        return dot(x, vectors, self_interaction, native=True).T

    z, back = jax.vjp(run, jnp.asarray(stack[0]), [jnp.asarray(v) for v in stack[1:]])
    d_x, d_vectors = back(jnp.asarray(cotangent))

    exact = stack.astype("f8")
    expected = np.concatenate([exact[0].T, (exact[i] * exact[j]).sum(axis=2)])
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=2e-5)
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


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ("1x1", {"self_interaction": True, "dense_features": 0}),
        ("2x4", {"optimizer": "rowwise_adagrad"}),
        ("2x4", {"compression": "mixed_dimensions", "compress_above": 100}),
    ],
)
def test_training_is_that_of_jax(mesh: str, changes: dict[str, Any]):
    found = {}
    for kernels in ("native", "jax"):
        described = config(kernels, **changes)
        learner = make_learner(described, make_mesh(mesh))
        assert learner.kernels["model"] == kernels
        step, state, losses = make_train_step(learner), learner.init(0), []
        batches = [learner.put(batch) for batch in generated_batches(described, 3)]
        for batch in batches:
            state, loss = step(state, batch)
            losses.append(float(loss))
        logits = make_predict(learner)(state, batches[0])
        found[kernels] = losses, [logits, *jax.tree.leaves(state.params)]
    np.testing.assert_allclose(found["native"][0], found["jax"][0], rtol=1e-5)
    for a, b in zip(found["native"][1], found["jax"][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_steps_and_predictions_have_them():
    learner = make_learner(config("native"), make_mesh("1x1"))
    (batch,) = map(learner.put, generated_batches(config("native"), 1))
    state = learner.init(0)
    train: Any = make_train_step(learner)
    predict: Any = make_predict(learner)
    assert "dlrm_jax_interact_back" in train.lower(state, batch).as_text()
    assert "dlrm_jax_interact" in predict.lower(state, batch).as_text()


def test_its_operations_are_counted_in_the_program_as_in_the_function():
    given = jnp.ones((16, 5)), [jnp.ones((5, 16))] * 3
    program = Program(jax.jit(dot_of_columns).lower(*given).compile().as_text() or "")
    (found,) = class_costs(program, frozenset()).values()
    assert found.flops == matrix_flops(dot_of_columns, *given) > 0


@pytest.mark.parametrize("changes", [{"interaction": "cat"}, {"model": "dcn_v2"}])
def test_what_has_no_native_interaction_says_so(changes: dict[str, Any]):
    learner = make_learner(config("native", **changes), make_mesh("1x1"))
    assert learner.kernels["model"] == "jax"
