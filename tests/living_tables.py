"""A small problem with dynamic ids: ids born and dying, features that share a map or have none."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from setups import step_of

from dlrm_jax.data.batches import Batch, Batches
from dlrm_jax.dynamic_ids.id_columns import ABSENT
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.embedding import EmbeddingCollection, Feature, Lookup, Table, automatic_plan
from dlrm_jax.embedding.optimizer import row_optimizer
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.dlrm import DLRM
from dlrm_jax.models.fields import Field
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.live_maps import LiveMaps, TranslatedBatches
from dlrm_jax.training.loop import Intervals, train
from dlrm_jax.training.penalty import NO_PENALTY, Penalty
from dlrm_jax.training.pipelined import PipelinedStep

SAMPLES, DENSE, WIDTH = 32, 3, 8
FEATURES = (Feature("item"), Feature("past", 3), Feature("tag", 2), Feature("city"))
LOOKUPS = (
    Lookup("item", "item", "items"),
    Lookup("past", "past", "items", "mean"),  # a shared table
    Lookup("tag", "tag", "tags"),
    Lookup("city", "city", "cities"),  # of rows, as ever
)
PLACED = {
    "rows": {"items": "row_wise", "tags": "table_wise", "cities": "replicated"},
    "columns": {"items": "column_wise", "tags": "replicated", "cities": "row_wise"},
    "devices": {"items": "fully_sharded", "tags": "row_wise", "cities": "fully_sharded"},
}
BORN = 7  # items that are born in each step


class Drifting:
    """Batches whose items are the last few that were born; the label is a bit of the item."""

    steps_per_epoch, batch_size = 1000, SAMPLES

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng(step)
        newest = BORN * (step + 1)
        item = newest - 1 - rng.integers(0, 40, (SAMPLES, 1)).clip(max=newest - 1)
        past = newest - 1 - rng.integers(0, 40, (SAMPLES, 3)).clip(max=newest - 1)
        tag = rng.integers(0, 90, (SAMPLES, 2))
        ids = np.concatenate([_bits(item), _bits(past), _bits(tag + 10**6)], axis=1)
        ids[:, 1:][rng.random((SAMPLES, 5)) < 0.3] = ABSENT
        city = rng.integers(0, 11, (SAMPLES, 1))
        labels = (item[:, 0] % 2).astype(np.float64)
        dense = rng.normal(size=(SAMPLES, DENSE))
        return Batch(dense, np.concatenate([ids, city], axis=1), labels, np.ones(SAMPLES))


def _bits(numbers: np.ndarray) -> np.ndarray:
    """Numbers scattered over all 64 bits."""
    return (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def learner(
    mesh: str,
    placed: str = "rows",
    rows: Sequence[int] = (80, 70),
    ids: DynamicIds | None = DynamicIds(evict_share=0.1),  # noqa: B008
    optimizer: str = "rowwise_adagrad",
    dtype: str = "float64",
    penalty: Penalty = NO_PENALTY,
    init: Any = None,
) -> Learner:
    made = make_mesh(mesh)
    tables = [
        Table("items", rows[0], WIDTH, dtype, init, ids=ids),
        Table("tags", rows[1], WIDTH, dtype, init, ids=ids),
        Table("cities", 11, WIDTH, dtype),
    ]
    plan = automatic_plan(tables, made.shape["model"], PLACED[placed])
    chosen = row_optimizer(optimizer, 0.1)
    collection = EmbeddingCollection(tables, FEATURES, LOOKUPS, made, chosen, plan)

    def make_model(rngs: nnx.Rngs) -> DLRM:
        fields = [Field(lookup.name, WIDTH) for lookup in LOOKUPS]
        return DLRM(DENSE, fields, (6, WIDTH), (10, 1), rngs=rngs, dtype=dtype, param_dtype=dtype)

    return Learner(collection, make_model, optax.sgd(0.1), penalty=penalty)


learner_on = functools.lru_cache(maxsize=8)(learner)


def arrays(learner: Learner, state: TrainState) -> dict[str, np.ndarray]:
    """Copies of all tables, their optimizer state and the dense parameters."""
    found = {
        f"{table.name}/{key}": np.array(array)
        for table, own in learner.collection.to_arrays(state.embedding)
        for key, array in own.items()
    }
    dense = enumerate(jax.tree.leaves(state.params))
    return found | {f"dense/{i}": np.array(leaf) for i, leaf in dense}


def run(
    learner: Learner,
    state: TrainState,
    batches: Batches | TranslatedBatches,
    steps: int,
    pipelined: bool = False,
    checkpoint_every: int = 0,
    keep: Any = lambda *_: True,
    validate: Any = None,
) -> tuple[TrainState, list[float]]:
    """Trains as the main job does; returns the state and all losses."""
    losses = []

    def record(step: int, split: str, metrics: Mapping[str, Any]) -> None:
        if split == "train":
            losses.append(metrics["loss"])

    step: Any = PipelinedStep(learner) if pipelined else step_of(learner)
    trained = train(
        learner,
        step,
        state,
        batches,
        steps,
        Intervals(log=1, evaluate=checkpoint_every, checkpoint=checkpoint_every),
        validate=validate,
        keep=keep,
        record=record,
        looks_ahead=pipelined,
        maps=batches.maps if isinstance(batches, TranslatedBatches) else None,
    )
    return trained.state, losses


def translated(
    learner: Learner, maps: IdMaps, step: int = 0, own: Batches | None = None
) -> TranslatedBatches:
    return TranslatedBatches(own or Drifting(), LiveMaps(learner, maps, 5, step))
