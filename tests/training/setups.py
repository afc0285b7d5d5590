"""One small problem that has a bit of everything, for the library and for the oracle."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from oracle import Oracle, OracleLookup, OracleTable

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import EmbeddingCollection, Feature, Lookup, Table, automatic_plan
from dlrm_jax.embedding.optimizer import row_optimizer
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.dlrm import DLRM
from dlrm_jax.training.dense import dense_optimizer
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.losses import LOSSES, class_weighted
from dlrm_jax.training.schedule import WarmupDecay
from dlrm_jax.training.step import make_train_step

MESHES = ("1x1", "2x4", "4x2", "8x1", "1x8")

DENSE = 3
SAMPLES = 32  # so that each of 4 micro-batches can be split over 8 devices

FEATURES = (
    Feature("word", 3),
    Feature("tag", 3),
    Feature("item", 1),
    Feature("past", 3),
    Feature("city", 2),
    Feature("page", 2),
    Feature("site", 2),
)

LOOKUPS = (
    Lookup("word", "word", "words", "sum"),
    Lookup("tag as word", "tag", "words", "mean"),  # words is shared by two features
    Lookup("tag", "tag", "tags", "sum"),  # and the feature tag reads two tables
    Lookup("item", "item", "items", "sum"),
    Lookup("past", "past", "items", "mean"),
    Lookup("city", "city", "cities", "mean"),
    Lookup("page", "page", "pages", "sum"),
    Lookup("site", "site", "sites", "mean"),
)

# 3,000 rows are more than a batch has ids, on any number of shards.
ROWS = {"words": 7, "tags": 60, "items": 3000, "cities": 23, "pages": 3000, "sites": 11}
PLACEMENTS = {
    "words": "replicated",
    "tags": "table_wise",
    "items": "row_wise",
    "cities": "row_wise",
    "pages": "replicated",
    "sites": "table_wise",
}
WIDTH = 8
WIDTHS_TO_CONCATENATE = dict(zip(ROWS, (8, 4, 6, 8, 5, 3), strict=True))
FROZEN = ("sites",)
WITH_OWN_OPTIMIZER = ("cities", "pages")

# The few rows that ids are drawn from, so that they repeat.
POOLS: dict[str, Sequence[int]] = {
    "word": range(7),
    "tag": (0, 1, 2, 5, 6),
    "item": (0, 1, 2, 3, 500, 1001, 1006, 1999, 2998, 2999),
    "past": (0, 2, 3, 4, 1001, 1002, 2997, 2999),
    "city": range(0, 23, 3),
    "page": (0, 7, 8, 1500, 2998, 2999),
    "site": range(11),
}

RATES = {"sgd": 0.3, "adagrad": 0.05, "rowwise_adagrad": 0.05, "adam": 0.01}
OTHER = {"sgd": "adagrad", "adagrad": "sgd", "rowwise_adagrad": "adam", "adam": "rowwise_adagrad"}


@dataclasses.dataclass(frozen=True)
class Setup:
    """How the problem is trained; `learner` and `oracle` are the two sides of it."""

    mesh: str = "2x4"
    optimizer: str = "sgd"
    dtype: Literal["float32", "float64"] = "float64"
    interaction: Literal["dot", "cat"] = "dot"
    self_interaction: bool = False
    loss: str = "bce"
    class_weights: tuple[float, float] = (1.0, 1.0)
    clip_norm: float = 0.0
    schedule: tuple[int, int, int] = (0, 0, 0)  # warm-up, start of the decay, its length
    accumulation_steps: int = 1

    def width(self, table: str) -> int:
        return WIDTH if self.interaction == "dot" else WIDTHS_TO_CONCATENATE[table]

    def table_optimizer(self, table: str) -> tuple[str, float]:
        """Its name and learning rate."""
        if table not in WITH_OWN_OPTIMIZER:
            return self.optimizer, RATES[self.optimizer]
        return OTHER[self.optimizer], 1.5 * RATES[OTHER[self.optimizer]]

    def learner(self) -> Learner:
        mesh = make_mesh(self.mesh)
        rate = WarmupDecay(RATES[self.optimizer], *self.schedule)
        tables = []
        for name, rows in ROWS.items():
            optimizer, base = self.table_optimizer(name)
            own = row_optimizer(optimizer, WarmupDecay(base, *self.schedule))
            tables.append(
                Table(
                    name,
                    rows,
                    self.width(name),
                    dtype=self.dtype,
                    optimizer=own if name in WITH_OWN_OPTIMIZER else None,
                    trainable=name not in FROZEN,
                )
            )
        collection = EmbeddingCollection(
            tables,
            FEATURES,
            LOOKUPS,
            mesh,
            row_optimizer(self.optimizer, rate),
            automatic_plan(tables, mesh.shape["model"], PLACEMENTS),
        )

        def make_model(rngs: nnx.Rngs) -> DLRM:
            return DLRM(
                DENSE,
                {lookup.name: self.width(lookup.table) for lookup in LOOKUPS},
                (6, WIDTH),
                (10, 1),
                interaction_kind=self.interaction,
                self_interaction=self.self_interaction,
                rngs=rngs,
                dtype=self.dtype,
                param_dtype=self.dtype,
            )

        return Learner(
            collection,
            make_model,
            dense_optimizer("same", self.optimizer, rate, None),
            class_weighted(LOSSES[self.loss], *self.class_weights),
            self.clip_norm,
            self.accumulation_steps,
        )

    def oracle(self, initial: dict[str, np.ndarray]) -> Oracle:
        """The oracle with these weights, from `arrays_of`."""
        tables = []
        for name in ROWS:
            optimizer, rate = self.table_optimizer(name)
            weights, trainable = initial[f"{name}/weights"], name not in FROZEN
            tables.append(OracleTable(name, weights, optimizer, rate, trainable=trainable))

        def layers(mlp: str) -> list[tuple[np.ndarray, np.ndarray]]:
            return [(initial[f"{mlp}/{i}/kernel"].T, initial[f"{mlp}/{i}/bias"]) for i in range(2)]

        warmup, decay_start, decay_steps = self.schedule
        return Oracle(
            tables,
            [OracleLookup(x.name, x.feature, x.table, x.pooling) for x in LOOKUPS],
            layers("bottom"),
            layers("top"),
            interaction=self.interaction,
            self_interaction=self.self_interaction,
            loss=self.loss,
            class_weights=self.class_weights,
            dense_optimizer=self.optimizer.removeprefix("rowwise_"),
            dense_learning_rate=RATES[self.optimizer],
            warmup=warmup,
            decay_start=decay_start,
            decay_steps=decay_steps,
            clip_norm=self.clip_norm or None,
        )


def initial_arrays(setup: Setup) -> dict[str, np.ndarray]:
    """Weights to start from, named as by `arrays_of`, the same for every mesh and optimizer."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}/weights": rng.uniform(-0.3, 0.3, (rows, setup.width(name)))
        for name, rows in ROWS.items()
    }
    arrays |= _dense_arrays(_drawn_params(dataclasses.replace(setup, mesh="1x1", optimizer="sgd")))
    return {name: array.astype(setup.dtype) for name, array in arrays.items()}


def start(learner: Learner, initial: dict[str, np.ndarray]) -> TrainState:
    """What `learner.init` gives, from given weights; compiling random numbers takes longer."""
    params = {mlp: {"layers": {0: {}, 1: {}}} for mlp in ("bottom", "top")}
    for mlp, layers in params.items():
        for i, layer in layers["layers"].items():
            for key in ("kernel", "bias"):
                layer[key] = jax.device_put(initial[f"{mlp}/{i}/{key}"], learner.replicated)
    init = jax.jit(learner.dense_optimizer.init, out_shardings=learner.replicated)
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), learner.replicated),
        params=params,
        optimizer=init(params),
        embedding=learner.collection.build(
            lambda table: {"weights": initial[f"{table.name}/weights"]}, seed=0
        ),
    )


@functools.cache
def _drawn_params(setup: Setup) -> Any:
    return jax.tree.map(np.array, setup.learner().init_params(0))


def _dense_arrays(params: Any) -> dict[str, np.ndarray]:
    return {
        f"{mlp}/{i}/{key}": np.array(array)
        for mlp in ("bottom", "top")
        for i, layer in params[mlp]["layers"].items()
        for key, array in layer.items()
    }


def make_batches(dtype: str, *, weighted: bool = True, count: int = 5) -> list[Batch]:
    """Batches with full, short and empty bags, in which ids repeat.

    The label is a fixed rule: whether the item is at an even place of its pool.
    """
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        bags = {f.name: _bags(rng, POOLS[f.name], f.max_ids) for f in FEATURES}
        bags["item"] = rng.choice(POOLS["item"], (SAMPLES, 1))
        ids = np.concatenate([bags[f.name] for f in FEATURES], axis=1).astype(np.int32)
        labels = np.isin(bags["item"][:, 0], POOLS["item"][::2])
        weights = rng.uniform(0.5, 1.5, SAMPLES)
        weights[[-1, 5]] = 0  # the last sample and one in the middle are padding, with ids
        id_weights = rng.uniform(0.2, 2, ids.shape)
        id_weights[4, -2:] = (0.7, -0.7)  # a mean whose weights sum to 0
        batches.append(
            Batch(
                dense=rng.normal(size=(SAMPLES, DENSE)).astype(dtype),
                ids=ids,
                labels=labels.astype(dtype),
                weights=weights.astype(dtype),
                id_weights=id_weights.astype(dtype) if weighted else None,
            )
        )
    return batches


def _bags(rng: np.random.Generator, pool: Sequence[int], length: int) -> np.ndarray:
    bags = rng.choice(pool, (SAMPLES, length))
    bags[rng.random(bags.shape) < 0.3] = -1
    bags[0] = -1  # empty
    bags[1] = pool[1]  # one id, as often as there is room
    bags[2] = pool[2]
    bags[2, length // 2] = -1  # absent in the middle
    bags[4] = pool[3]
    return bags


def by_feature(columns: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of all features, side by side, as the oracle takes them."""
    ends = np.cumsum([f.max_ids for f in FEATURES])[:-1]
    return dict(zip([f.name for f in FEATURES], np.split(columns, ends, axis=1), strict=True))


def oracle_arguments(batch: Batch) -> dict:
    """The batch as the arguments of `Oracle.step` and `Oracle.gradients`."""
    return {
        "dense": batch.dense,
        "ids": by_feature(batch.ids),
        "labels": batch.labels,
        "id_weights": None if batch.id_weights is None else by_feature(batch.id_weights),
        "sample_weights": batch.weights,
    }


def arrays_of(learner: Learner, state: TrainState) -> dict[str, np.ndarray]:
    """Copies of all tables, their optimizer state and the dense parameters."""
    tables = {
        f"{table.name}/{key}": np.array(array)
        for table, logical in learner.collection.read(state.embedding)
        for key, array in logical.items()
    }
    return tables | _dense_arrays(state.params)


def oracle_arrays(oracle: Oracle) -> dict[str, np.ndarray]:
    """The same of the oracle, under the same names."""
    names = {"accumulator": "accumulator", "m": "mean", "v": "variance"}
    arrays = {f"{name}/weights": table.weights for name, table in oracle.tables.items()}
    for table, slots in oracle.slots.items():
        arrays |= {f"{table}/{names[key]}": array for key, array in slots.items()}
    for mlp, layers in (("bottom", oracle.bottom), ("top", oracle.top)):
        for i, (W, b) in enumerate(layers):
            arrays |= {f"{mlp}/{i}/kernel": W.T, f"{mlp}/{i}/bias": b}
    return arrays


def train(
    learner: Learner, state: TrainState, batches: Sequence[Batch], steps: int
) -> tuple[TrainState, np.ndarray]:
    """Trains on the batches in turn; returns the state and the loss of each step."""
    step = make_train_step(learner)
    losses = []
    for i in range(steps):
        batch = learner.put(batches[i % len(batches)])
        # Waits: many runs in flight on few cores may starve each other's collectives.
        state, loss = jax.block_until_ready(step(state, batch))
        losses.append(float(loss))
    return state, np.array(losses)
