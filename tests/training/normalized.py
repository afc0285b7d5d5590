"""A model with batch statistics and random numbers, its learners and its batches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from saved_run import CONFIG, examples

from dlrm_jax import backend
from dlrm_jax.data.batches import Batch, TrainBatches
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.fields import Model, concatenated, concatenated_width
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner, TrainState

MOMENTUM = 0.9


class Normalized(Model):
    """What a user writes: batch normalization, dropout, a hidden layer."""

    def __init__(self, dense_features, fields, *, rate: float = 0.5, rngs: nnx.Rngs):
        self.fields = tuple(fields)
        width = concatenated_width(dense_features, fields)
        self.norm = nnx.BatchNorm(width, momentum=MOMENTUM, rngs=rngs)
        self.hidden = nnx.Linear(width, 8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.output = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, dense, vectors):
        x = self.norm(concatenated(dense, vectors, self.fields))
        x = self.dropout(jax.nn.relu(self.hidden(x)))
        return self.output(x)[:, 0]


CHANGED = dataclasses.replace(CONFIG, model=f"{__name__}:Normalized", learning_rate=0.05)


def config(**changes: Any):
    return dataclasses.replace(CHANGED, **changes)


@functools.cache
def _begun(mesh: str, **changes: Any) -> tuple[Learner, TrainState, TrainState]:
    # Such models see all samples at once, however few make a chunk.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "CPU", dataclasses.replace(backend.CPU, dense_chunk=4))
        learner = make_learner(config(**changes), make_mesh(mesh))
    state = learner.init(0)
    return learner, jax.tree.map(np.array, state), jax.tree.map(lambda x: x.sharding, state)


def begin(mesh: str, **changes: Any) -> tuple[Learner, TrainState]:
    """A learner, which is made once, and a new copy of its first state."""
    learner, state, shardings = _begun(mesh, **changes)
    return learner, jax.device_put(jax.tree.map(np.copy, state), shardings)


def batches(count: int = 3) -> list[Batch]:
    drawn = TrainBatches(examples(512), CONFIG.batch_size, seed=0)
    return [drawn[i] for i in range(count)]


def inputs(learner: Learner, state: TrainState, batch: Batch) -> np.ndarray:
    """What the normalization gets, in float64."""
    found = [np.asarray(batch.dense, "f8")]
    ends = np.cumsum(CONFIG.table_bag_lengths)
    for table, arrays in learner.collection.to_arrays(state.embedding):
        place = CONFIG.table_names.index(table.name)
        bags = batch.ids[:, ends[place] - CONFIG.table_bag_lengths[place] : ends[place]]
        rows = np.asarray(arrays["table"], "f8")[bags]
        found.append(np.where(bags[..., None] >= 0, rows, 0).sum(1))
    return np.concatenate(found, axis=1)


def norm_of(state: TrainState) -> tuple[np.ndarray, np.ndarray]:
    norm = state.model_state["statistics"]["norm"]
    return np.array(norm["mean"]), np.array(norm["var"])


def numbers(tree: Any) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves(tree)]
