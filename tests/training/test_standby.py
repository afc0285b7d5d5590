"""What a standby has in memory: the latest checkpoint, as long as it is the one that is there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from saved_run import CONFIG, learner_on

from dlrm_jax.errors import UserError
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.retention import Retention
from dlrm_jax.training.standby import ReadAhead

IDENTITY = {"data": "x", **CONFIG.identity()}


@pytest.fixture(scope="module")
def learner() -> Learner:
    return learner_on("1x2")


def save(learner: Learner, directory: Path, *steps: int, seed: int = 0) -> Checkpoints:
    checkpoints = Checkpoints(directory / "checkpoints", IDENTITY)
    checkpoints.prepare()
    for step in steps:
        number = jax.device_put(np.int32(step), learner.replicated)
        state = dataclasses.replace(learner.init(seed), step=number)
        checkpoints.save(learner, state, {"config": dataclasses.asdict(CONFIG)}, None)
    return checkpoints


def path(checkpoints: Checkpoints, step: int) -> Path:
    return Retention(checkpoints.directory, 1, "auc").path(step)


def test_it_follows_the_latest(learner: Learner, tmp_path: Path):
    checkpoints = save(learner, tmp_path)
    ahead = ReadAhead(checkpoints, learner, 0)
    ahead.look()
    assert ahead.step is None
    for step in (1, 2):
        save(learner, tmp_path, step)
        ahead.look()
        assert ahead.step == step
    assert ahead.take(path(checkpoints, 1), None) is None
    state = ahead.take(path(checkpoints, 2), None)
    assert state
    assert int(state.step) == 2
    assert ahead.take(path(checkpoints, 2), None) is None, "it is given away once"


def test_another_one_of_the_same_step_is_not_taken(learner: Learner, tmp_path: Path):
    checkpoints = save(learner, tmp_path, 1)
    ahead = ReadAhead(checkpoints, learner, 0)
    ahead.look()
    shutil.rmtree(checkpoints.directory)
    save(learner, tmp_path, 1, seed=7)
    assert ahead.take(path(checkpoints, 1), None) is None


def test_a_damaged_one_is_left_to_who_has_the_workdir(learner: Learner, tmp_path: Path):
    checkpoints = save(learner, tmp_path, 1, 2)
    shutil.rmtree(path(checkpoints, 2) / "dense")
    ahead = ReadAhead(checkpoints, learner, 0)
    ahead.look()
    assert ahead.step is None
    assert checkpoints.steps() == [1, 2], "nothing is renamed"
    save(learner, tmp_path, 3)
    ahead.look()
    assert ahead.step == 3


def test_that_of_another_run_is_an_error(learner: Learner, tmp_path: Path):
    checkpoints = save(learner, tmp_path, 1)
    other = dataclasses.replace(checkpoints, identity={**IDENTITY, "seed": 9})
    with pytest.raises(UserError, match="seed"):
        ReadAhead(other, learner, 0).look()
