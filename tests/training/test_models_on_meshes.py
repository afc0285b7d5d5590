"""Every model learns the same on every mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dlrm_jax.config import Config
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import generate_data
from dlrm_jax.training.step import make_predict, make_train_step

CONFIG = Config(
    table_rows=(30, 40, 50),
    bag_lengths=(1, 1, 3),
    embedding_dim=8,
    dense_features=3,
    bottom_mlp=(8, 8),
    top_mlp=(8, 1),
    batch_size=64,
    examples=800,
    placements=("C1=row_wise",),
    optimizer="sgd",
    learning_rate=0.1,
)
CHANGES: dict[str, dict[str, Any]] = {
    "ncf": {"table_rows": (30, 40), "bag_lengths": (1,), "dense_features": 0},
    "din": {"model_options": ("target=C2",)},
    "autoint_plus": {"model_options": ("attention_dropout=0.2", "layer_norm=true")},
    "hstu": {"model_options": ("target=C2", "heads=2")},
    "stca": {"model_options": ("target=C2", "heads=2")},
    # The derivative of ln x is 1 / x: larger steps blow rounding up.
    "afn": {"learning_rate": 0.001},
    "afn_plus": {"learning_rate": 0.001},
    "fcn": {"dropout": 0.2, "model_options": ("exponential_layers=2", "linear_layers=2")},
    "finalmlp": {"normalization": "batch"},
    "finalnet": {"normalization": "batch", "dropout": 0.2},
    "ssr": {"model_options": ("view_width=16",)},
}


@pytest.mark.thorough  # by default `test_model_state.py` has statistics of the batch, and dropout
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_predictions_are_the_same_on_every_mesh(name: str):
    config = dataclasses.replace(CONFIG, model=name, **CHANGES.get(name, {}))
    batches = TrainBatches(generate_data(config).train, config.batch_size, 0)
    meshes = ("1x1", "2x4", "4x2", "1x8")
    found = []
    for mesh in meshes:
        learner = make_learner(config, make_mesh(mesh))
        state, losses, step = learner.init(0), [], make_train_step(learner)
        for i in range(4):
            state, loss = step(state, learner.put(batches[i]))
            losses.append(float(loss))
        logits = make_predict(learner)(state, learner.put(batches[4]))
        found.append((losses, np.asarray(logits)))
    for losses, logits in found[1:]:
        np.testing.assert_allclose(losses, found[0][0], rtol=2e-5)
        np.testing.assert_allclose(logits, found[0][1], rtol=5e-4, atol=1e-4)
