"""Products of float32 matrices have the precision that the config asks for, in every program."""

import dataclasses
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dlrm_jax.config import Config
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.precision import jit
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.compiled import abstract_batch, lower_step
from dlrm_jax.training.device_step import make_device_step
from dlrm_jax.training.step import make_predict

CONFIG = Config(
    table_rows=(30, 40, 50),
    bag_lengths=(1, 1, 3),
    embedding_dim=8,
    dense_features=3,
    bottom_mlp=(8, 8),
    top_mlp=(8, 1),
    batch_size=64,
    kernels="jax",
)
CHANGES: dict[str, dict[str, Any]] = {
    "ncf": {"table_rows": (30, 40), "bag_lengths": (1,), "dense_features": 0},
    "din": {"model_options": ("target=C2",)},
    "hstu": {"model_options": ("target=C2",)},
    "stca": {"model_options": ("target=C2",)},
    "ssr": {"model_options": ("view_width=16", "filters=dynamic")},
}


def products(lowered: jax.stages.Lowered) -> Counter[tuple[str, str]]:
    """How many products have factors of a type, and a precision."""
    found = Counter()
    for line in lowered.as_text().splitlines():
        if not re.search(r"stablehlo\.(dot_general|dot|convolution)\b", line):
            continue
        dtype = re.search(r"\(tensor<(?:\d+x)*(\w+)>", line)
        precision = re.search(r"precision = \[(\w+), (\w+)\]", line)
        assert dtype, line
        assert not precision or precision[1] == precision[2], line
        found[dtype[1], precision[1] if precision else "DEFAULT"] += 1
    return found


def learner_of(name: str = "dlrm", mesh: str = "1x1", **changes: Any):
    changes = CHANGES.get(name, {}) | changes
    return make_learner(dataclasses.replace(CONFIG, model=name, **changes), make_mesh(mesh))


def step_of(name: str = "dlrm", mesh: str = "1x1", **changes: Any) -> jax.stages.Lowered:
    learner = learner_of(name, mesh, **changes)
    dense = changes.get("dense_features", CHANGES.get(name, {}).get("dense_features", 3))
    return lower_step(learner, CONFIG.batch_size, dense)


# By default, those with products of other kinds; a learner gives the precision to all alike.
@pytest.mark.parametrize(
    "name",
    [
        x if x in ("dlrm", "autoint_plus", "hstu") else pytest.param(x, marks=pytest.mark.thorough)
        for x in MODELS
    ],
)
def test_float32_means_float32(name):
    found = products(step_of(name))
    found.pop(("i32", "DEFAULT"), None)
    assert set(found) <= {("f32", "HIGHEST")}, "there and on the way back"
    assert found or name in ("logistic_regression", "fm"), "they multiply no matrices"


def test_tf32_is_a_choice():
    full, short = products(step_of()), products(step_of(product_precision="tf32"))
    assert short == {("f32", "HIGH"): full["f32", "HIGHEST"]}


def test_bfloat16_is_a_choice_of_the_factors():
    found = products(step_of(compute_dtype="bfloat16"))
    assert found["bf16", "DEFAULT"] > 0
    # The interaction isn't of the dense layers. Factors that were bfloat16 have nothing to lose.
    assert set(found) <= {("bf16", "DEFAULT"), ("f32", "HIGHEST"), ("f32", "DEFAULT")}


@pytest.mark.parametrize("mesh", [pytest.param("1x1", marks=pytest.mark.thorough), "2x4"])
def test_on_meshes_and_in_predictions(mesh):
    assert set(products(step_of(mesh=mesh, pooling="mean"))) == {("f32", "HIGHEST")}
    learner = learner_of(mesh=mesh)
    batch = abstract_batch(learner, 64, 3)
    lowered = make_predict(learner).lower(learner.state_specs(), batch)  # pyright: ignore
    assert set(products(lowered)) == {("f32", "HIGHEST")}


def test_steps_of_devices():
    learner = learner_of()

    def loss_of(model, pooled, batch):
        answers = model(batch.dense, pooled)
        return jnp.sum(jnp.square(answers - batch.labels)), jnp.sum(batch.sample_weights)

    step: Any = make_device_step(learner, lambda batch: batch.ids, loss_of)
    lowered = step.lower(learner.state_specs(), abstract_batch(learner, 64, 3))
    assert set(products(lowered)) == {("f32", "HIGHEST")}


def test_a_product_that_names_a_precision_keeps_it():
    def product(x, y):
        return jnp.dot(x, y, precision="high") @ y

    x = jnp.ones((2, 2))
    assert products(jit(product).lower(x, x)) == {("f32", "HIGH"): 1, ("f32", "HIGHEST"): 1}
