"""Losses of groups are those of plain loops, on every mesh."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_run import CONFIG, examples

from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.compiled import compile_step, compiled_collectives, planned_collectives
from dlrm_jax.training.config_data import train_batches
from dlrm_jax.training.data_parallel import _ranked
from dlrm_jax.training.ranking_losses import RANKING_LOSSES, Ranked, RankingLoss
from dlrm_jax.training.step import make_predict, make_train_step

KINDS = pytest.mark.parametrize("kind", RANKING_LOSSES)


def loss_of(kind: str, z, y, w, groups) -> float:
    """The loss of a batch in float64: over pairs, or over positive samples."""
    total = weight = 0.0
    rows = range(len(z))
    for i in rows:
        same = [j for j in rows if groups[j] == groups[i]]
        if kind == "pairwise":
            for j in same:
                if y[i] > y[j]:
                    total += w[i] * w[j] * math.log1p(math.exp(z[j] - z[i]))
                    weight += w[i] * w[j]
        elif y[i] > 0 and w[i] > 0:
            total += y[i] * w[i] * (math.log(sum(w[j] * math.exp(z[j]) for j in same)) - z[i])
            weight += y[i] * w[i]
    return total / weight if weight else 0.0


@KINDS
@pytest.mark.parametrize("seed", range(2))
def test_loss_and_derivatives(kind: str, seed: int):
    """Groups of 1 to 8, ties, weights of 0; the first and the last group may be of one label."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(9), rng.integers(1, 9, 9))
    groups = np.where(groups == 8, 0, groups)[: 24 + 3 * seed]  # a later group of the same number
    groups = np.cumsum(np.diff(groups, prepend=0) != 0)
    n = len(groups)
    z, y = rng.normal(size=n).round(1), (rng.random(n) < 0.4).astype(float)
    w = rng.choice([0.0, 0.5, 1.0, 2.0], n) if seed else np.ones(n)
    loss = jax.jit(RANKING_LOSSES[kind]("request"))
    found = loss(*(jnp.asarray(x, jnp.float32) for x in (z, y, w)), jnp.asarray(groups))
    total, weight, slopes = (np.asarray(x, np.float64) for x in found)
    expected = loss_of(kind, z, y, w, groups)
    assert total.sum() / weight.sum() == pytest.approx(expected, rel=1e-5)
    for i in range(n):
        up, down = (loss_of(kind, z + step * np.eye(n)[i], y, w, groups) for step in (1e-6, -1e-6))
        assert slopes[i] / weight.sum() == pytest.approx((up - down) / 2e-6, abs=1e-5)


@KINDS
def test_nothing_to_compare(kind: str):
    ones = jnp.ones(4)
    for labels, weights in ((0 * ones, ones), (ones, 0 * ones)):
        found = jax.jit(RANKING_LOSSES[kind]("x"))(1e4 * ones, labels, weights, jnp.arange(4))
        assert not any(map(jnp.any, found))
        assert all(map(jnp.isfinite, jnp.concatenate(found)))


def problem(kind: str):
    """Groups by the first feature, whose 7 values make groups that batches cut off."""
    config = dataclasses.replace(
        CONFIG, loss=f"{kind}:C1", table_optimizers=(), optimizer="sgd", learning_rate=0.5
    )
    rows = examples(128)
    day = rows.take(np.arange(128))
    weights = np.random.default_rng(1).choice([0.5, 2], 128).astype(np.float32)
    train = Split((dataclasses.replace(day, sample_weights=weights),))
    data = Dataset(train, rows, rows, CONFIG.table_rows, CONFIG.bag_lengths, "drawn", "drawn")
    return config, train_batches(config, data)


@pytest.mark.parametrize("kind", ["pairwise", pytest.param("listwise", marks=pytest.mark.thorough)])
def test_a_step_on_meshes(kind: str):
    config, batches = problem(kind)
    states = []
    for mesh in ("1x1", "2x4"):
        learner = make_learner(config, make_mesh(mesh))
        state, step = learner.init(0), make_train_step(learner)
        predict = make_predict(learner)
        logits = np.asarray(predict(state, learner.put(batches[0])), np.float64)
        state, loss = step(state, learner.put(batches[0]))
        batch = batches[0]
        expected = loss_of(kind, logits, batch.labels, batch.sample_weights, batch.groups)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        state, _ = step(state, learner.put(batches[1]))
        after = predict(state, learner.put(batches[0]))
        states.append([*jax.tree.leaves(state.params), after])
    for found, expected in zip(*states, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_short_logits_leave_groups_and_weights_exact():
    """In bfloat16, groups 256 and 257 would be one."""
    config, batches = problem("pairwise")
    learner = make_learner(config, make_mesh("1x1"))
    size = config.batch_size
    batch = batches[0]._replace(
        sample_weights=np.linspace(0.5, 1, size, dtype=np.float32),
        groups=np.arange(250, 250 + size, dtype=np.int32),
    )

    class Reading(RankingLoss):
        def __call__(self, logits, labels, weights, groups):
            np.testing.assert_array_equal(weights, batch.sample_weights)
            np.testing.assert_array_equal(groups, batch.groups)
            return Ranked(logits, weights, labels)

    answers = jnp.ones(size, jnp.bfloat16)
    loss, _ = _ranked(learner, Reading("C1"), answers, jax.tree.map(jnp.asarray, batch))
    assert loss == size


def test_collectives_are_planned():
    config, _ = problem("pairwise")
    learner = make_learner(dataclasses.replace(config, kernels="jax"), make_mesh("2x4"))
    compiled = compile_step(learner, config.batch_size, config.dense_features)
    planned, found = Counter(), Counter()
    for each in planned_collectives(learner, config.batch_size):
        planned[each.kind] += each.nbytes
    for kind, nbytes in compiled_collectives(compiled):
        found[kind] += nbytes
    assert found == planned


def test_refused():
    config, _ = problem("listwise")
    for changes, message in (
        ({"accumulation_steps": 2}, "accumulation_steps: expected 1"),
        ({"class_weights": (1.0, 2.0)}, "class_weights: expected 1,1 for loss=listwise:C1"),
        ({"loss": "pairwise"}, "pairwise needs the column"),
    ):
        with pytest.raises(UserError, match=message):
            make_learner(dataclasses.replace(config, **changes), make_mesh("1x1"))
