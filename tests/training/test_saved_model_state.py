"""Batch statistics and random numbers of models are kept by checkpoints."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from normalized import CHANGED, batches, begin, inputs, norm_of, numbers
from saved_run import CONFIG, DATA, examples, save
from setups import train

from dlrm_jax.data.batches import Batch
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.warm_start import warm_start


@pytest.mark.parametrize("mesh", [pytest.param("1x1", marks=pytest.mark.thorough), "2x4"])
def test_a_resumed_run_is_an_unbroken_one(mesh: str, tmp_path: Path):
    learner, state = begin(mesh)
    state, losses = train(learner, state, batches(), 3)
    checkpoints = Checkpoints(tmp_path, {"data": DATA})
    checkpoints.save(learner, state, {}, None)
    restored = checkpoints.restore(learner, 3)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for x, saved in zip(numbers(restored), numbers(state), strict=True):
        np.testing.assert_array_equal(x, saved)
    unbroken, later = train(learner, state, batches(), 3)
    resumed, again = train(learner, restored, batches(), 3)
    np.testing.assert_array_equal(again, later)
    assert np.all(later != losses)
    for x, wanted in zip(numbers(resumed), numbers(unbroken), strict=True):
        np.testing.assert_array_equal(x, wanted)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, TrainState, Path]:
    """A learner, its last state, and where that lies."""
    learner, state = begin("2x4")
    state, _ = train(learner, state, batches(), 5)
    return learner, state, save(tmp_path_factory.mktemp("run"), learner, state, CHANGED)


def test_predictions_draw_nothing_and_count_nothing(saved: tuple[Learner, TrainState, Path]):
    learner, state, checkpoint = saved
    split = examples(200, seed=1)
    rows = split.take(np.arange(200))
    x = inputs(learner, state, Batch(rows.dense, rows.ids, rows.labels, None))
    mean, variance = norm_of(state)
    params = jax.tree.map(lambda a: np.array(a, "f8"), state.params)
    x = (x - mean) / np.sqrt(variance + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    x = np.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    logits = (x @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]
    for mesh in ("1x1", "2x4"):
        predictor = Predictor.load(checkpoint, make_mesh(mesh), 64, CHANGED.model)
        first, second = (np.concatenate(list(predictor.probabilities(split))) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_a_warm_start_takes_the_statistics(saved: tuple[Learner, TrainState, Path]):
    learner, state, checkpoint = saved
    warm = warm_start(learner, 7, checkpoint, ["norm"])
    for x, wanted in zip(norm_of(warm), norm_of(state), strict=True):
        np.testing.assert_array_equal(x, wanted)
    np.testing.assert_array_equal(warm.params["norm"]["scale"], state.params["norm"]["scale"])
    assert np.any(warm.params["hidden"]["kernel"] != state.params["hidden"]["kernel"])


def test_a_checkpoint_without_what_a_model_has(tmp_path: Path):
    without = make_learner(CONFIG, make_mesh("1x1"))
    save(tmp_path, without, without.init(0))
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"data": DATA})
    learner, _ = begin("1x1")
    with pytest.raises(UserError, match=r"expected \w+\S* of shape .*, it has no such array"):
        checkpoints.restore(learner, 0)
