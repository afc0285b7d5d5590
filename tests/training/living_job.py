"""Trains the problem of `living_tables` in one of several processes: `test_living_processes`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from living_tables import Drifting, learner, run, translated
from processes_job import part_of

from dlrm_jax.coordinator import join
from dlrm_jax.data.batches import Batch
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import emulate_devices
from dlrm_jax.processes import is_process_0
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState

MESHES = {2: "1x2", 4: "2x2"}  # by the number of processes
ROWS, IDS = (81, 70), DynamicIds(evict_share=0.1, parts=3)
SEED, STEPS, BROKEN = 5, 20, 10


class Own:
    """The samples that this process has of each batch."""

    steps_per_epoch, batch_size = Drifting.steps_per_epoch, Drifting.batch_size

    def __getitem__(self, step: int) -> Batch:
        return part_of(Drifting()[step], jax.process_index(), jax.process_count())


class EnoughError(Exception):
    """Raised in the midst of a training, whose next batches have been translated."""


def main(coordinator: str, count: int, index: int, directory: Path) -> None:
    emulate_devices(count, count)
    join(coordinator, count, index)
    jax.config.update("jax_enable_x64", True)
    living = learner(MESHES[count], "rows", ROWS, IDS)

    checkpoints = Checkpoints(directory / "broken", {})
    batches = translated(living, IdMaps(living.collection, SEED), own=Own())
    looked_up = {}

    def validate(state: TrainState) -> dict[str, float]:
        step = int(state.step)
        ids = batches.maps.maps_at(step).find(Own()[step + 1].ids)
        looked_up[str(step)] = multihost_utils.process_allgather(ids, tiled=True)
        return {}

    def keep(state: TrainState, *_: object) -> bool:
        step = int(state.step)
        checkpoints.save(living, state, {}, None, batches.maps.maps_at(step))
        if step == BROKEN:
            raise EnoughError
        return True

    try:
        run(living, living.init(SEED), batches, STEPS, False, 5, keep, validate)
    except EnoughError:
        save(directory / "looked_up.npz", looked_up)

    maps = IdMaps(living.collection, SEED)
    state, losses = run(living, living.init(SEED), translated(living, maps, own=Own()), STEPS)
    save(directory / "unbroken.npz", {**gathered(living, state, maps), "losses": losses})

    back = Checkpoints(directory / "back", {})
    while not (directory / "back" / "whole").exists():  # the test writes it, in one process
        time.sleep(0.05)
    state, step = back.restore_latest(living, maps)
    assert step == BROKEN
    state, losses = run(living, state, translated(living, maps, step, Own()), STEPS)
    save(directory / "resumed.npz", {**gathered(living, state, maps), "losses": losses})

    smaller = learner(MESHES[count], "rows", (77, 60), DynamicIds(evict_share=0.1, parts=2))
    maps = IdMaps(smaller.collection, SEED)
    state = back.restore(smaller, BROKEN, maps)
    save(directory / "smaller.npz", gathered(smaller, state, maps))

    few = learner(MESHES[count], "rows", (40, 70), IDS)
    try:
        translated(few, IdMaps(few.collection, SEED), own=Own())[9]
    except UserError as error:
        (directory / f"error-{index}.txt").write_text(str(error), encoding="utf-8")


def gathered(learner: Learner, state: TrainState, maps: IdMaps) -> dict[str, np.ndarray]:
    """All tables, optimizer state, dense parameters and maps, in every process."""
    found = {
        f"{table.name}/{key}": np.asarray(multihost_utils.process_allgather(array, tiled=True))
        for table, own in learner.collection.to_arrays(state.embedding)
        for key, array in own.items()
    }
    dense = enumerate(jax.tree.leaves(state.params))
    found |= {f"dense/{i}": np.asarray(x.addressable_data(0)) for i, x in dense}
    return found | {
        f"{name}/{key}": array for name, own in maps.arrays().items() for key, array in own.items()
    }


def save(path: Path, arrays: dict) -> None:
    if is_process_0():
        np.savez(path, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
