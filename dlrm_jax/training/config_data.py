"""The data that a config describes, what data decide of a config, and training batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.batches import Batch, Batches, TrainBatches
from dlrm_jax.data.generated.synthetic import fingerprint, generate
from dlrm_jax.data.groups import codes_of, first_places
from dlrm_jax.data.unseen_ids import unseen_ids
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import numbered
from dlrm_jax.training.losses import group_column


def generate_data(config: Config) -> Dataset:
    """Generated examples for the tables of a config."""
    generated = generate(*_of_generated(config))
    return dataclasses.replace(generated, columns=config.table_names)


def generated_fingerprint(config: Config) -> str:
    """The fingerprint of what `generate_data` makes."""
    return fingerprint(*_of_generated(config))


def _of_generated(config: Config) -> tuple[Any, ...]:
    return (
        config.table_rows,
        config.table_bag_lengths,
        config.dense_features,
        config.examples,
        config.zipf_exponent,
        config.seed,
        config.teacher,
    )


OF_DATA = frozenset(("table_rows", "features", "bag_lengths", "dense_features"))
"""Fields that the data decide, if they aren't generated."""


def for_data(config: Config, data: Dataset) -> Config:
    """Returns the config with the tables, names, dense features and labels of the data.

    Columns that share a vocabulary share a table, besides those of ``config.shared_tables``.
    """
    of_data = [f"{name}={owner}" for name, owner in data.shared.items()]
    is_named = data.columns != numbered(len(data.columns))
    return dataclasses.replace(
        config,
        features=data.columns if is_named else (),
        table_rows=data.table_rows,
        bag_lengths=data.bag_lengths,
        shared_tables=tuple(dict.fromkeys([*of_data, *config.shared_tables])),
        dense_features=data.train.dense_features,
        labels=data.labels if len(data.labels) > 1 else config.labels,
    )


def check_shared(config: Config, data: Dataset) -> None:
    """Checks that features which share a table have ids of one vocabulary, if the data have any.

    Raises:
        UserError: the data have a vocabulary for each.
    """
    given = {*config.shared_tables} - {f"{name}={owner}" for name, owner in data.shared.items()}
    if data.directory and given:
        raise UserError(
            f"shared_tables: in {data.directory} each column of {min(given)} has a vocabulary of "
            f"its own, so that an id means another value in each; name them as shared in the "
            f"schema, and prepare the data again"
        )


def generated_batches(config: Config, count: int) -> Iterator[Batch]:
    """The first training batches of generated data of just enough examples, on the host."""
    # 80 % of the examples are for training.
    config = dataclasses.replace(config, examples=-(-count * config.batch_size * 10 // 8))
    batches = train_batches(config, generate_data(config))
    return (batches[i] for i in range(count))


def train_batches(config: Config, data: Dataset, process: int = 0, processes: int = 1) -> Batches:
    """The training batches of a config, of this process; with groups if its loss reads them."""
    column = group_column(config.loss)
    return TrainBatches(
        data.train,
        config.batch_size,
        config.seed,
        config.shuffle_window,
        process,
        processes,
        unseen_ids(data, config.unseen_rate, config.seed),
        codes_of(data.train, column, first_places(data)) if column else None,
    )
