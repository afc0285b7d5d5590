"""A small model, trained for some steps and saved as the main job does."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from setups import step_of

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import ABSENT, Examples, Split
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState

CONFIG = Config(
    table_rows=(7, 3000, 40),
    bag_lengths=(1, 3, 2),
    placements=("C1=replicated", "C2=row_wise", "C3=table_wise"),
    table_optimizers=("C1=adam:0.01",),
    embedding_dim=8,
    dense_features=3,
    bottom_mlp=(8,),
    top_mlp=(8, 1),
    batch_size=64,
    evaluation_batch_size=64,
    learning_rate=0.1,
)
DATA = "data of the small model"
STEPS = 5


def examples(count: int, seed: int = 0, config: Config = CONFIG) -> Split:
    """Random features with some places of bags unused, in two days."""
    rng = np.random.default_rng(seed)
    limits = np.repeat(config.table_rows, config.table_bag_lengths)
    ids = rng.integers(0, limits, (count, len(limits))).astype(np.int32)
    ids[rng.random(ids.shape) < 0.1] = ABSENT
    dense = rng.normal(size=(count, config.dense_features)).astype(np.float32)
    days = Examples(dense, ids, (ids[:, 0] % 2 == 0).astype(np.float32))
    return Split((days[: count // 3], days[count // 3 :]))


@functools.cache
def learner_on(mesh: str, config: Config = CONFIG) -> Learner:
    """A learner that tests share, and with it the programs that were compiled for it."""
    return make_learner(config, make_mesh(mesh))


def train_and_save(
    workdir: Path, mesh: str, config: Config = CONFIG
) -> tuple[Learner, TrainState, Path]:
    """The learner, its last state, and where that lies."""
    learner = learner_on(mesh, config)
    state, step = learner.init(config.seed), step_of(learner)
    batches = TrainBatches(examples(512, config=config), config.batch_size, seed=0)
    for i in range(STEPS):
        state, _ = step(state, learner.put(batches[i]))
    return learner, state, save(workdir, learner, state, config)


def save(
    workdir: Path,
    learner: Learner,
    state: TrainState,
    config: Config = CONFIG,
    id_maps: IdMaps | None = None,
) -> Path:
    """Saves a state as the main job does."""
    checkpoints = Checkpoints(workdir / "checkpoints", {"data": DATA, **config.identity()})
    checkpoints.save(learner, state, {"config": dataclasses.asdict(config)}, None, id_maps)
    return workdir / "checkpoints" / f"{int(state.step):08d}"
