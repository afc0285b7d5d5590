"""Dynamic ids in two processes: the numbers of one process, whoever saves and resumes."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import numpy as np
import pytest
from living_job import BROKEN, IDS, MESHES, ROWS, SEED, STEPS
from living_tables import Drifting, arrays, learner, run, translated
from started_jobs import started

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError
from dlrm_jax.training.checkpoint import Checkpoints

SECONDS = 600
JOB = Path(__file__).with_name("living_job.py")


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)  # in Orbax's threads, too
    yield
    jax.config.update("jax_enable_x64", False)


def whole(learner, state, maps: IdMaps) -> dict[str, np.ndarray]:
    """What `living_job.gathered` gives."""
    return arrays(learner, state) | {
        f"{name}/{key}": array for name, own in maps.arrays().items() for key, array in own.items()
    }


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return dict(found)


def wait_for(path: Path, processes) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists() and time.monotonic() < deadline:
        assert not any(processes.codes()), processes.logs()
        time.sleep(0.05)


@pytest.mark.usefixtures("x64")
# `test_stream_processes.py` has two processes with dynamic ids by default.
@pytest.mark.thorough
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_as_one(count: int, tmp_path: Path):
    with started(JOB, count, tmp_path) as processes:
        living = learner(MESHES[count], "rows", ROWS, IDS)
        maps = IdMaps(living.collection, SEED)
        state, losses = run(living, living.init(SEED), translated(living, maps), STEPS)
        wanted = whole(living, state, maps)

        # A checkpoint of several processes, read and written by one.
        wait_for(tmp_path / "unbroken.npz", processes)
        maps = IdMaps(living.collection, SEED)
        state, step = Checkpoints(tmp_path / "broken", {}).restore_latest(living, maps)
        assert step == BROKEN
        Checkpoints(tmp_path / "back", {}).save(living, state, {}, None, maps)
        (tmp_path / "back" / "whole").touch()
        processes.wait(SECONDS)

    unbroken, resumed = read(tmp_path / "unbroken.npz"), read(tmp_path / "resumed.npz")
    np.testing.assert_allclose(unbroken.pop("losses"), losses, rtol=1e-9)
    for name, array in unbroken.items():
        tolerance = 1e-9 if array.dtype.kind == "f" else 0  # none in maps
        np.testing.assert_allclose(array, wanted[name], tolerance, tolerance, err_msg=name)
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)

    own = IdMaps(living.collection, SEED)
    looked_up = read(tmp_path / "looked_up.npz")
    assert {*looked_up} == {"5", "10"}
    for step in range(BROKEN):
        own.translate(Drifting()[step].ids, step)
        if str(step + 1) in looked_up:
            found = own.find(Drifting()[step + 2].ids)
            np.testing.assert_array_equal(looked_up[str(step + 1)], found)

    smaller = learner(MESHES[count], "rows", (77, 60), DynamicIds(evict_share=0.1, parts=2))
    maps = IdMaps(smaller.collection, SEED)
    state = Checkpoints(tmp_path / "back", {}).restore(smaller, BROKEN, maps)
    for name, array in read(tmp_path / "smaller.npz").items():
        np.testing.assert_array_equal(array, whole(smaller, state, maps)[name], err_msg=name)

    errors = {(tmp_path / f"error-{x}.txt").read_text(encoding="utf-8") for x in range(count)}
    few = learner(MESHES[count], "rows", (40, 70), IDS)
    with pytest.raises(UserError, match="the batch of step 1: table items, part ") as error:
        translated(few, IdMaps(few.collection, SEED))[9]
    assert errors == {str(error.value)}
