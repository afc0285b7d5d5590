from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from dlrm_jax.config import Config
from dlrm_jax.mesh import make_mesh
from dlrm_jax.stream.step import make_prequential_step
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import generated_batches
from dlrm_jax.training.step import make_predict, make_train_step

CONFIG = Config(
    table_rows=(40, 30),
    embedding_dim=4,
    dense_features=3,
    bottom_mlp=(4,),
    top_mlp=(4, 1),
    batch_size=32,
    kernels="jax",
)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ((2, 4), {}),
        pytest.param((1, 2), {"accumulation_steps": 2}, marks=pytest.mark.thorough),
        pytest.param((1, 1), {"chunk": 8}, marks=pytest.mark.thorough),
        pytest.param((1, 2), {"dropout": 0.5}, marks=pytest.mark.thorough),
    ],
)
def test_logits_are_those_before_the_update(mesh, changes):
    chunk = changes.pop("chunk", None)
    config = dataclasses.replace(CONFIG, **changes)
    learner = make_learner(config, make_mesh(mesh))
    if chunk:
        learner.dense_chunk = chunk
    batches = list(generated_batches(config, 3))
    step, predict = make_prequential_step(learner), make_predict(learner)
    usual = make_train_step(learner)
    state, expected = learner.init(0), learner.init(0)
    for batch in batches:
        predicted, trained = learner.put_evaluation(batch), learner.put(batch)
        before = np.asarray(predict(state, predicted))
        state, loss, logits = step(state, predicted, trained)
        np.testing.assert_allclose(np.asarray(logits), before, rtol=1e-5, atol=1e-6)
        expected, usual_loss = usual(expected, trained)
        assert float(loss) == float(usual_loss)
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
