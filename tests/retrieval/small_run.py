"""A small run of two towers on prepared data, trained in seconds."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.config import Config
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.mesh import make_mesh
from dlrm_jax.retrieval.files import Index
from dlrm_jax.retrieval.model import MODEL, config_of
from dlrm_jax.retrieval.run import Outcome, run
from dlrm_jax.retrieval.settings import RetrievalSettings
from dlrm_jax.retrieval.task import Task, make_task
from dlrm_jax.training.build import make_learner

SCHEMA = Schema(
    "clicked",
    ("user", "viewed", "item", "shop"),
    dense=("price",),
    bag_lengths={"viewed": 3},
    shared={"viewed": "item"},
)
SETTINGS = RetrievalSettings(
    user_columns=("user", "viewed"),
    item_columns=("item", "shop", "price"),
    tower=(4,),
    negatives=16,
    recall_at=(3,),
)
INDEX: Index = "usearch" if importlib.util.find_spec("usearch") else "none"


def log() -> pl.DataFrame:
    """Users who like items of their own parity, some of which come only late."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 20, 600), rng.integers(0, 9, 600)
    items[560:] = rng.integers(0, 11, 40)
    viewed = [[f"i{x}" for x in rng.integers(0, 9, n)] for n in rng.integers(0, 4, 600)]
    return pl.DataFrame(
        {
            "clicked": ((users + items) % 2 == 0) | (rng.random(600) < 0.2),
            "user": [f"u{x}" for x in users],
            "viewed": pl.Series(viewed, dtype=pl.List(pl.String)),
            "item": pl.Series([f"i{x}" for x in items]).set(pl.Series(range(600)) == 7, None),
            "shop": [f"s{x % 4}" for x in items],
            "price": items * 1.5,
        }
    )


def prepared(directory: Path) -> Task:
    """The log as prepared data, and what towers learn of it."""
    log().write_parquet(directory / "log.parquet")
    preprocess([directory / "log.parquet"], directory / "data", Options(SCHEMA, split="time"))
    return make_task(load_directory(directory / "data"), SETTINGS)


def trained(
    task: Task,
    workdir: Path,
    steps: int,
    say: Callable[[str], None] = lambda text: None,
    **changes: object,
) -> Outcome:
    base = Config(
        model=MODEL,
        pooling="mean",
        embedding_dim=8,
        optimizer="rowwise_adagrad",
        dense_optimizer="adam",
        learning_rate=0.05,
        batch_size=32,
        evaluation_batch_size=64,
        steps=steps,
        log_every=1,
        eval_every=30,
    )
    config = config_of(base, task.settings, task.data, task.user, task.item)
    config = dataclasses.replace(config, **changes)  # pyright: ignore[reportArgumentType]
    learner = make_learner(config, make_mesh("1x1"))
    return run(task, config, learner, workdir, INDEX, say)
