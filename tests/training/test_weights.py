"""Batches whose examples have no weight, or whose class has none."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from saved_run import CONFIG, examples, learner_on
from setups import step_of

from dlrm_jax.data.arrays import Split
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.training.evaluation import evaluate
from dlrm_jax.training.step import make_predict

BATCH = TrainBatches(examples(512), CONFIG.batch_size, seed=0)[0]


def stepped(config, batch, mesh="1x1"):
    """The learner, its first state, the next one and the loss; all on the host."""
    learner = learner_on(mesh, config)
    state = learner.init(0)
    before = jax.tree.map(np.asarray, state)
    after, loss = step_of(learner)(state, learner.put(batch))
    return learner, before, jax.tree.map(np.asarray, after), float(loss)


def test_a_micro_batch_without_weight_adds_nothing():
    weights = np.where(np.arange(CONFIG.batch_size) < CONFIG.batch_size // 2, 0, 2.0)
    batch = BATCH._replace(sample_weights=weights.astype("f4"))
    _, before, whole, loss = stepped(CONFIG, batch)
    _, _, parts, other = stepped(dataclasses.replace(CONFIG, accumulation_steps=2), batch)
    assert other == np.float32(loss) or abs(other - loss) < 1e-6
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), whole, parts)
    changed = [np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (before, parts)), strict=True)]
    assert np.mean(changed) > 0.9


def test_a_batch_of_a_class_without_weight_changes_nothing():
    config = dataclasses.replace(
        CONFIG, class_weights=(0.0, 3.0), clip_norm=1.0, table_optimizers=()
    )
    batch = BATCH._replace(labels=np.zeros_like(BATCH.labels))
    _, before, after, loss = stepped(config, batch)
    assert loss == 0
    assert after.step == before.step + 1
    for part in ("params", "embedding"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(before, part))


def test_a_batch_without_weight_has_no_loss():
    _, _, _, loss = stepped(CONFIG, BATCH._replace(sample_weights=0 * BATCH.sample_weights))
    assert np.isnan(loss)  # the training loop says why


def test_evaluation_counts_each_example_by_its_weight():
    learner = learner_on("1x1")
    state, predict = learner.init(0), make_predict(learner)
    plain = examples(100)
    repeats = np.arange(100) % 4
    weights = np.split(repeats.astype("f4"), [len(plain.days[0])])
    weighted = [
        dataclasses.replace(day, sample_weights=of_day)
        for day, of_day in zip(plain.days, weights, strict=True)
    ]
    repeated = Split((plain.take(np.repeat(np.arange(100), repeats)),))
    found = evaluate(learner, predict, state, Split(tuple(weighted)), 64)
    expected = evaluate(learner, predict, state, repeated, 64)
    assert found == pytest.approx(expected | {"examples": 100}, rel=1e-9)
