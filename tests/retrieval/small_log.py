"""A small log of choices, as data of two towers: bags, a shared table, dense columns, weights."""

from __future__ import annotations

import numpy as np

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.retrieval.model import MODEL, config_of
from dlrm_jax.retrieval.settings import RetrievalSettings
from dlrm_jax.retrieval.task import Task, make_task

COLUMNS = ("page", "user", "item", "viewed", "shop")  # page belongs to no tower
ROWS = (3, 7, 11, 11, 4)
BAGS = (1, 1, 1, 3, 1)

SETTINGS = RetrievalSettings(
    user_columns=("viewed", "user", "I2"),
    item_columns=("item", "shop", "I1"),
    tower=(5, 4),
    temperature=0.5,
    negatives=8,
    table_learning_rate=0.25,
    sampler="frequency",
    recall_at=(2, 5),
)


def examples(count: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    ids = np.column_stack([rng.integers(0, r, (count, b)) for r, b in zip(ROWS, BAGS, strict=True)])
    ids[:, 2] = np.minimum(rng.geometric(0.25, count) - 1, 9)  # few are frequent, 10 isn't there
    ids[rng.random(count) < 0.3, 4:6] = -1
    return Examples(
        rng.normal(size=(count, 3)).astype(np.float32),
        ids.astype(np.int32),
        (rng.random(count) < 0.6).astype(np.float32),
        rng.uniform(0.5, 2, count).astype(np.float32),
    )


def dataset(train: int = 160) -> Dataset:
    return Dataset(
        Split((examples(train // 2, 0), examples(train // 2, 1))),
        Split((examples(40, 2),)),
        Split((examples(40, 3),)),
        ROWS,
        BAGS,
        "small",
        "small",
        columns=COLUMNS,
        shared={"viewed": "item"},
    )


def config(task: Task, **changes: object) -> Config:
    fields = {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 16, "embedding_dim": 4}
    placements = ("item=row_wise", "user=table_wise", "shop=replicated")
    base = Config(
        model=MODEL,
        pooling="mean",
        evaluation_batch_size=16,
        placements=placements,
        **(fields | changes),  # pyright: ignore[reportArgumentType]
    )
    return config_of(base, task.settings, task.data, task.user, task.item)


def task(settings: RetrievalSettings = SETTINGS) -> Task:
    return make_task(dataset(), settings)
