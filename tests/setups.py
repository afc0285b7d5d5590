"""One small problem that has a bit of everything, for the library and for the oracle."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from oracle import Oracle, OracleLookup, OracleTable

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import EmbeddingCollection, Feature, Lookup, Table, automatic_plan
from dlrm_jax.embedding.optimizer import OPTIMIZERS, row_optimizer
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.dlrm import DLRM
from dlrm_jax.models.fields import Field
from dlrm_jax.models.mlp import MLP
from dlrm_jax.training.dense import dense_optimizer
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.losses import LOSSES, class_weighted
from dlrm_jax.training.penalty import NO_PENALTY, Penalty
from dlrm_jax.training.schedule import WarmupDecay
from dlrm_jax.training.step import make_train_step

MESHES = ("1x1", "2x4", "4x2", "8x1", "1x8")

DENSE = 3

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


def by_columns(shards: int) -> dict[str, str]:
    """Other placements: columns are split, and rows over the second half of the shards."""
    half = f"row_wise:{shards // 2}-{shards - 1}"
    columns = dict.fromkeys(("tags", "items", "pages"), "column_wise")
    return {**PLACEMENTS, **columns, "cities": half}


def over_devices(shards: int) -> dict[str, str]:
    """Further placements: rows over all devices, beside others, also of tables of one width."""
    return {**PLACEMENTS, **dict.fromkeys(("words", "items", "cities"), "fully_sharded")}


_PLACED = {"rows": lambda shards: PLACEMENTS, "columns": by_columns, "devices": over_devices}
WIDTH = 8
WIDTHS_TO_CONCATENATE = dict(zip(ROWS, (8, 4, 6, 8, 5, 3), strict=True))
FROZEN = ("sites",)
WITH_OWN_OPTIMIZER = ("cities", "pages")

RATES = dict.fromkeys(OPTIMIZERS, 0.01) | {"sgd": 0.3, "adagrad": 0.05, "rowwise_adagrad": 0.05}
# The optimizer of the tables that have one of their own.
OTHER = dict.fromkeys(OPTIMIZERS, "sgd")
OTHER |= {"sgd": "adagrad", "rowwise_adagrad": "adam", "adam": "rowwise_adagrad"}


class WithHeads(DLRM):
    """DLRM whose last layer has a logit for each of several labels."""

    def __init__(self, labels: int, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        given = {x: options[x] for x in ("rngs", "dtype", "param_dtype")}
        first = self.top.layers[0]
        widths = (first.in_features, first.out_features, labels)
        self.top = MLP(widths, last_relu=False, **given)

    def __call__(self, dense: Any, vectors: Any) -> Any:
        pooled = [vectors[name] for name in self.names]
        return self.top(self.interact(self.bottom(dense), pooled))


@dataclasses.dataclass(frozen=True)
class Setup:
    """How the problem is trained; `learner` and `oracle` are the two sides of it."""

    mesh: str = "2x4"
    optimizer: str = "sgd"
    placed: Literal["rows", "columns", "devices"] = "rows"
    dtype: Literal["float32", "float64"] = "float64"
    interaction: Literal["dot", "cat"] = "dot"
    self_interaction: bool = False
    loss: str = "bce"
    class_weights: tuple[float, float] = (1.0, 1.0)
    clip_norm: float = 0.0
    schedule: tuple[int, int, int] = (0, 0, 0)  # warm-up, start of the decay, its length
    accumulation_steps: int = 1
    comm_dtype: str | None = None
    penalty: Penalty = NO_PENALTY
    label_weights: tuple[float, ...] = (1.0,)
    shard_dense_optimizer: bool = False
    dense_comm_dtype: str | None = None

    @property
    def dense_optimizer(self) -> str:
        """The dense counterpart of the optimizer, or Adam."""
        name = self.optimizer.removeprefix("rowwise_")
        return name if name in ("sgd", "adagrad", "adam") else "adam"

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
        shards = mesh.shape["model"]
        collection = EmbeddingCollection(
            tables,
            FEATURES,
            LOOKUPS,
            mesh,
            row_optimizer(self.optimizer, rate),
            automatic_plan(tables, shards, _PLACED[self.placed](shards)),
            self.comm_dtype,
        )

        labels = {f"label {i}": weight for i, weight in enumerate(self.label_weights)}

        def make_model(rngs: nnx.Rngs) -> DLRM:
            model = DLRM if len(labels) == 1 else functools.partial(WithHeads, len(labels))
            return model(
                DENSE,
                [Field(lookup.name, self.width(lookup.table)) for lookup in LOOKUPS],
                (6, WIDTH),
                (10, 1),
                interaction=self.interaction,
                self_interaction=self.self_interaction,
                rngs=rngs,
                dtype=self.dtype,
                param_dtype=self.dtype,
            )

        return Learner(
            collection,
            make_model,
            dense_optimizer(self.dense_optimizer, self.optimizer, rate, None),
            class_weighted(LOSSES[self.loss], *self.class_weights),
            self.clip_norm,
            self.accumulation_steps,
            self.penalty,
            labels,
            shard_dense_optimizer=self.shard_dense_optimizer,
            dense_comm_dtype=self.dense_comm_dtype,
        )

    def oracle(self, initial: dict[str, np.ndarray]) -> Oracle:
        """The oracle with these weights, from `named_arrays.arrays_of`."""
        tables = []
        for name in ROWS:
            optimizer, rate = self.table_optimizer(name)
            weights, trainable = initial[f"{name}/table"], name not in FROZEN
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
            dense_optimizer=self.dense_optimizer,
            dense_learning_rate=RATES[self.optimizer],
            warmup=warmup,
            decay_start=decay_start,
            decay_steps=decay_steps,
            clip_norm=self.clip_norm or None,
            table_l2=self.penalty.tables,
            whole_tables=self.penalty.whole_tables,
            dense_l2=self.penalty.dense,
            label_weights=self.label_weights,
        )


# The same learner goes on without being traced again.
step_of = functools.lru_cache(maxsize=8)(make_train_step)


def train(
    learner: Learner, state: TrainState, batches: Sequence[Batch], steps: int
) -> tuple[TrainState, np.ndarray]:
    """Trains on the batches in turn; returns the state and the loss of each step."""
    step = step_of(learner)
    losses = []
    for i in range(steps):
        batch = learner.put(batches[i % len(batches)])
        # Waits: many runs in flight on few cores may starve each other's collectives.
        state, loss = jax.block_until_ready(step(state, batch))
        losses.append(float(loss))
    return state, np.array(losses)


def with_one_wrong_copy(x: jax.Array) -> jax.Array:
    """The same array, but for one number of the last device's copy."""
    parts = [np.array(shard.data) for shard in x.addressable_shards]
    parts[-1].reshape(-1)[0] += 1
    return jax.make_array_from_single_device_arrays(
        x.shape,
        x.sharding,
        [jax.device_put(p, s.device) for p, s in zip(parts, x.addressable_shards, strict=True)],
    )
