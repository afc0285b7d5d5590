"""Data sets such as MovieLens have ids alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from saved_run import CONFIG, DATA, train_and_save

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import SGD, EmbeddingCollection, Feature, Lookup, Table
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.step import make_predict, make_train_step

SAMPLES = 4096  # worked through in several chunks on one device


class Sum(nnx.Module):
    """Logits are what one table has of an id, and a bias."""

    def __init__(self, rngs: nnx.Rngs):
        del rngs
        self.bias = nnx.Param(jnp.ones(()))

    def __call__(self, dense: jax.Array, pooled: dict[str, jax.Array]) -> jax.Array:
        assert dense.shape == (len(dense), 0)
        return pooled["item"][:, 0] + self.bias[...]


@pytest.mark.parametrize(("mesh", "accumulation_steps"), [("1x1", 1), ("1x1", 2), ("2x2", 2)])
def test_a_model_of_ids_alone_is_trained(mesh: str, accumulation_steps: int):
    collection = EmbeddingCollection(
        [Table("items", 9, 1)], [Feature("item")], [Lookup("item", "item", "items")],
        make_mesh(mesh), SGD(1.0),
    )  # fmt: skip
    learner = Learner(collection, Sum, optax.sgd(1.0), accumulation_steps=accumulation_steps)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, (SAMPLES, 1), dtype=np.int32)
    labels = rng.integers(0, 2, SAMPLES).astype(np.float32)
    empty = np.empty((SAMPLES, 0), np.float32)
    batch = Batch(empty, ids, labels, np.ones(SAMPLES, np.float32))
    state = learner.init(0)

    predict = make_predict(learner)
    logits = np.asarray(predict(state, learner.put_evaluation(batch)), np.float64)
    error = 1 / (1 + np.exp(-logits)) - labels
    step = np.bincount(ids[:, 0], weights=error, minlength=9)[ids[:, 0]] + error.sum()
    expected_loss = np.mean(np.logaddexp(0, logits) - labels * logits)

    state, loss = make_train_step(learner)(state, learner.put(batch))
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    after = np.asarray(predict(state, learner.put_evaluation(batch)))
    np.testing.assert_allclose(after, logits - step / SAMPLES, rtol=1e-4, atol=1e-5)


def test_a_layer_without_inputs_is_saved_and_restored(tmp_path: Path):
    config = dataclasses.replace(CONFIG, dense_features=0)
    learner, state, _ = train_and_save(tmp_path, "1x1", config)
    saved = Checkpoints(tmp_path / "checkpoints", {"data": DATA, **config.identity()})
    restored, _ = saved.restore_latest(learner)
    assert 0 in [x.size for x in jax.tree.leaves(state.params)]
    jax.tree.map(np.testing.assert_array_equal, restored, state)
