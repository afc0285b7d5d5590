"""What a standby has in memory: the latest checkpoint, as long as it is the one that is there."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from saved_run import CONFIG, learner_on

from dlrm_jax.errors import UserError
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.record import LOCK
from dlrm_jax.training.retention import Retention
from dlrm_jax.training.standby import ReadAhead, stand_by

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
    state = ahead.take(path(checkpoints, 2), None)
    assert state
    assert int(state.step) == 2
    assert ahead.take(path(checkpoints, 2), None) is None, "it is given away once"


@pytest.mark.thorough
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


@pytest.mark.parametrize("how", ["moved", "deleted", "another lock"])
def test_a_workdir_that_is_not_the_runs_any_more_is_left_alone(
    learner: Learner, tmp_path: Path, how: str
):
    """The run may go on in it, in another place."""
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    workdir.mkdir()
    checkpoints = save(learner, workdir, 3)
    lock = workdir / LOCK

    def standing_by(line: str) -> None:
        assert line == f"standing by for {workdir}, step 3"
        if how == "another lock":
            lock.unlink()
            lock.touch()
        elif how == "moved":
            workdir.rename(moved)
        else:
            shutil.rmtree(workdir)

    with lock.open("w") as file, contextlib.ExitStack() as opened:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="may go on elsewhere; see that no run trains"):
            stand_by(opened, workdir, checkpoints, learner, 0, lambda state: None, standing_by)
    assert workdir.exists() == (how == "another lock")


def test_a_state_that_is_not_taken_is_not_kept(learner: Learner, tmp_path: Path):
    checkpoints = save(learner, tmp_path, 1)
    ahead = ReadAhead(checkpoints, learner, 0)
    ahead.look()
    assert ahead.step == 1
    save(learner, tmp_path, 2)
    assert ahead.take(path(checkpoints, 2), None) is None
    assert ahead.step is None
