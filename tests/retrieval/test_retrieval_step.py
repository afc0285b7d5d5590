"""A step against float64 in NumPy, whatever the mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
import small_log

from dlrm_jax.mesh import make_mesh
from dlrm_jax.retrieval.batches import RetrievalBatch, RetrievalBatches
from dlrm_jax.retrieval.step import make_retrieval_step
from dlrm_jax.retrieval.task import Task
from dlrm_jax.retrieval.vectors import Encoder
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner, TrainState

STEPS, B = 2, 8
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def task() -> Task:
    return small_log.task()


def arrays_of(learner: Learner, state: TrainState) -> Arrays:
    """All parameters by name, in float64."""
    found = {
        f"table {t.name}": a["table"] for t, a in learner.collection.to_arrays(state.embedding)
    }
    for keys, leaf in jax.tree.leaves_with_path(state.params):
        found[".".join(str(key.key) for key in keys)] = leaf
    return {name: np.asarray(array, np.float64) for name, array in found.items()}


# -- The oracle: one row at a time -----------------------------------------------------


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.sum(x**2) + 1e-12)


def mlp(x: np.ndarray, name: str, arrays: Arrays) -> np.ndarray:
    for i in range(2):
        x = x @ arrays[f"{name}.layers.{i}.kernel"] + arrays[f"{name}.layers.{i}.bias"]
        x = np.maximum(x, 0) if i == 0 else x
    return unit(x)


def item_vector(arrays: Arrays, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
    inputs = [dense, arrays["table item"][ids[0]], arrays["table shop"][ids[1]]]
    return mlp(np.concatenate(inputs), "item_mlp", arrays)


def loss_of(arrays: Arrays, batch: RetrievalBatch, temperature: float) -> float:
    """The loss of a batch of one device: B positives, then the negatives."""
    users, items = [], []
    for dense, ids in zip(batch.dense.astype(np.float64), batch.ids, strict=True):
        present = [i for i in ids[:3] if i >= 0]  # viewed reads the items' table
        mean = arrays["table item"][present].mean(axis=0) if present else np.zeros(4)
        user = arrays["table user"][ids[3]] if ids[3] >= 0 else np.zeros(4)
        users.append(mlp(np.concatenate([dense[:1], mean, user]), "user_mlp", arrays))
        items.append(item_vector(arrays, dense[1:], ids[4:]))
    total = 0.0
    for i in range(B):
        logits = []
        for j, vector in enumerate(items):
            if j == i or batch.items[j] != batch.items[i]:
                logits.append(users[i] @ vector / temperature - float(batch.log_q[j]))
        own = users[i] @ items[i] / temperature - float(batch.log_q[i])
        total += batch.sample_weights[i] * (np.log(np.sum(np.exp(logits))) - own)
    return total / float(np.sum(batch.sample_weights[:B], dtype=np.float64))


def sgd(arrays: Arrays, loss: Any) -> Arrays:
    """The arrays after one step, with gradients from differences."""
    after = {name: array.copy() for name, array in arrays.items()}
    for name, array in arrays.items():
        rate = 0.25 if name.startswith("table ") else 0.5
        for index in np.ndindex(array.shape):
            kept, delta = array[index], 1e-5
            array[index] = kept + delta
            above = loss(arrays)
            array[index] = kept - delta
            below = loss(arrays)
            array[index] = kept
            after[name][index] -= rate * (above - below) / (2 * delta)
    return after


@pytest.fixture(scope="module")
def expected(task: Task) -> tuple[list[float], Arrays]:
    config = small_log.config(task, batch_size=B)
    learner = make_learner(config, make_mesh("1x1"))
    arrays = arrays_of(learner, learner.init(0))
    batches, losses = RetrievalBatches(task, config, 1), []
    for number in range(STEPS):
        loss = functools.partial(loss_of, batch=batches[number], temperature=0.5)
        losses.append(loss(arrays))
        arrays = sgd(arrays, loss)
    return losses, arrays


@pytest.mark.parametrize(
    "mesh", ["2x4", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("1x1", "8x1"))]
)
def test_a_step_is_that_of_the_whole_batch(
    task: Task, expected: tuple[list[float], Arrays], mesh: str
):
    config = small_log.config(task, batch_size=B)
    learner = make_learner(config, make_mesh(mesh))
    step: Any = make_retrieval_step(learner, config.batch_size)
    batches = RetrievalBatches(task, config, learner.axes.device_count)
    state, losses = learner.init(0), []
    for number in range(STEPS):
        state, loss = step(state, learner.put(batches[number]))
        losses.append(float(loss))
    assert losses == pytest.approx(expected[0], rel=1e-5)
    found = arrays_of(learner, state)
    assert found.keys() == expected[1].keys()
    for name, array in expected[1].items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    assert step._cache_size() == 1
    vectors = Encoder(learner, "item", task.user, task.item, 16)(
        state, task.items.dense, task.items.ids
    )
    rows = zip(task.items.dense, task.items.ids, strict=True)
    oracle = [item_vector(expected[1], *row) for row in rows]
    np.testing.assert_allclose(vectors, oracle, rtol=1e-4, atol=1e-5)
