"""Models with batch statistics and random numbers are the same on every mesh."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from normalized import MOMENTUM, batches, begin, config, inputs, norm_of, numbers
from setups import step_of, train

from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.mesh import put_whole
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.model import make_model
from dlrm_jax.training.step import make_predict
from dlrm_jax.training.tables import describe

MESHES = ("1x1", "2x4", "1x8")
MICRO_BATCHES = {"accumulation_steps": 2, "clip_norm": 0.1}


@pytest.mark.parametrize(
    ("changes", "meshes"),
    [
        ({}, ("1x8",)),
        pytest.param(MICRO_BATCHES, ("2x4", "2x2"), marks=pytest.mark.thorough),
        *(pytest.param(x, MESHES, marks=pytest.mark.thorough) for x in ({}, MICRO_BATCHES)),
    ],
)
def test_statistics_are_of_the_whole_batch_on_every_mesh(
    changes: dict[str, Any], meshes: tuple[str, ...]
):
    """Against NumPy; those of micro-batches, one after the other, are of each."""
    losses = {}
    for mesh in meshes:
        learner, state = begin(mesh, **changes)
        losses[mesh] = []
        width = len(norm_of(state)[0])
        mean, variance = np.zeros(width), np.ones(width)
        for batch in batches():
            for x in np.split(inputs(learner, state, batch), learner.accumulation_steps):
                mean = MOMENTUM * mean + (1 - MOMENTUM) * x.mean(0)
                variance = MOMENTUM * variance + (1 - MOMENTUM) * x.var(0)
            state, loss = train(learner, state, [batch], 1)
            losses[mesh] += loss.tolist()
            np.testing.assert_allclose(norm_of(state)[0], mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(norm_of(state)[1], variance, rtol=1e-5, atol=1e-6)
    first, *others = losses.values()
    assert np.ptp(first) > 1e-3
    for other in others:
        np.testing.assert_allclose(other, first, rtol=2e-5)


@pytest.mark.parametrize("mesh", ["2x4", pytest.param("1x8", marks=pytest.mark.thorough)])
def test_training_goes_on_alike_on_every_mesh(mesh: str):
    """Gradients too: through the statistics, and with the same masks."""
    alone, expected = train(*begin("1x1"), batches(), 12)
    assert expected[-3:].mean() < expected[:3].mean()
    state, losses = train(*begin(mesh), batches(), 12)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for x, wanted in zip(numbers(state.params), numbers(alone.params), strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-3, atol=1e-4)


def test_many_steps_are_one_compilation():
    learner, _ = begin("2x4")
    state, step = learner.init(0), step_of(learner)
    for batch in batches():
        state, _ = jax.block_until_ready(step(state, learner.put(batch)))
    assert step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]
    specs = learner.state_specs()
    assert jax.tree.structure(specs) == jax.tree.structure(state)
    for spec, x in zip(jax.tree.leaves(specs), jax.tree.leaves(state), strict=True):
        assert (spec.shape, spec.dtype) == (x.shape, x.dtype)


def test_samples_without_weight_count_in_the_statistics():
    (batch,) = batches(1)
    ignored = batch._replace(sample_weights=(np.arange(64) % 2).astype(np.float32))
    found = [train(*begin("2x4"), [x], 1) for x in (batch, ignored)]
    np.testing.assert_array_equal(norm_of(found[0][0])[0], norm_of(found[1][0])[0])
    assert found[0][1] != found[1][1]


def test_masks_differ_from_step_to_step():
    losses = losses_of_first_state()
    assert len(set(losses)) == 4
    losses = losses_of_first_state(model_options=("rate=0",))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def losses_of_first_state(**changes: Any) -> list[float]:
    """Those of one batch, were the state that of step 0, 1, 2, 3."""
    found = []
    for number in range(4):
        learner, state = begin("2x4", **changes)
        step = put_whole(np.array(number, np.int32), learner.replicated)
        _, (loss,) = train(learner, dataclasses.replace(state, step=step), batches(1), 1)
        found.append(loss)
    return found


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        pytest.param((2, 4), ("replica", "table"), marks=pytest.mark.thorough),
        pytest.param((2, 2, 2), ("replica", "tensor", "table"), marks=pytest.mark.thorough),
    ],
    ids=["renamed", "with_another_axis"],
)
def test_the_axes_of_a_mesh_may_have_other_names(shape: tuple[int, ...], names: tuple[str, ...]):
    """Masks, statistics, micro-batches, clipping: all that a step does over the axes."""
    usual, initial = begin(f"{shape[0]}x{shape[-1]}", **MICRO_BATCHES)
    changed = config(**MICRO_BATCHES)
    described = describe(changed)
    collection = EmbeddingCollection(
        described.tables,
        described.features,
        described.lookups,
        jax.make_mesh(shape, names, (jax.sharding.AxisType.Auto,) * len(names)),
        described.optimizer,
        usual.collection.plan,
        data_axes=names[0],
        model_axis=names[-1],
    )
    named = Learner(
        collection,
        functools.partial(make_model, changed, described.composers),
        usual.dense_optimizer,
        usual.loss,
        changed.clip_norm,
        changed.accumulation_steps,
    )
    expected, losses = train(usual, initial, batches(), 4)
    state, found = train(named, named.init(0), batches(), 4)
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    for x, y in zip(numbers(state), numbers(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    (batch,) = batches(1)
    logits = make_predict(named)(state, named.put_evaluation(batch))
    wanted = make_predict(usual)(expected, usual.put_evaluation(batch))
    np.testing.assert_allclose(logits, wanted, rtol=1e-5)
