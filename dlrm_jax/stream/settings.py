"""The settings of a run on a stream: what its schema decides, and what no stream has."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Literal

from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import numbered
from dlrm_jax.run_start import check_unvalidated
from dlrm_jax.training.losses import group_column
from dlrm_jax.training.model import check_takes

IdClock = Literal["steps", "seconds"]
"""What the clock of dynamic ids counts: steps, or seconds of the events' time since 1970."""

OF_SCHEMA = ("features", "bag_lengths", "dense_features", "labels")
"""Fields that the schema decides."""

WITHOUT_EFFECT = {
    "epochs": "a stream is read once",
    "shuffle_window": "a stream is read in its order",
    "eval_every": "each batch is evaluated before it is trained on",
    "best_metric": "the latest checkpoint counts",
    "target_auc": "a stream has no validation split",
    "patience": "a stream has no validation split",
    "plateau_factor": "a stream has no validation split",
    "plateau_patience": "a stream has no validation split",
    "validation_examples": "a stream has no validation split",
    "evaluation_batch_size": "a batch is evaluated at a time",
    "unseen_rate": "a stream has no vocabulary",
    "min_count": "a stream has no vocabulary",
    "examples": "the stream has the examples",
    "zipf_exponent": "the stream has the examples",
    "teacher": "the stream has the examples",
    "pipelined": "the next batch may not be there yet",
}
"""Fields that a run on a stream doesn't read, each with the reason."""


def for_schema(config: Config, schema: Schema) -> Config:
    """The config with the features, bags, dense features and labels of a schema.

    Args:
        config: config of the run, with the rows of each categorical column's table, or one number
            for all of them.
        schema: meaning of the columns.

    Raises:
        UserError: the schema or a setting needs what a stream doesn't have.
    """
    check_schema(schema)
    check_unvalidated(config)
    if config.pipelined:
        raise UserError(f"pipelined: no effect with a stream: {WITHOUT_EFFECT['pipelined']}")
    if column := group_column(config.loss):
        raise UserError(
            f"loss: {config.loss} compares the examples of a {column}, and a batch of a stream may "
            f"cut them anywhere; expected a loss of single examples, such as bce"
        )
    count, rows = len(schema.categorical), config.table_rows
    if len(rows) not in (1, count):
        raise UserError(
            f"table_rows: expected one number, or one for each of the {count} categorical columns "
            f"({', '.join(schema.categorical)}), got {len(rows)}"
        )
    rows = rows * count if len(rows) == 1 else rows
    shared = tuple(f"{name}={owner}" for name, owner in schema.shared.items())
    if others := [x for x in config.shared_tables if x not in shared]:
        raise UserError(
            f"shared_tables: {others[0]}: a stream gives a value one row in columns that the "
            f"schema shares, and rows of their own in others; name them as shared in the schema"
        )
    config = dataclasses.replace(
        config,
        features=() if schema.categorical == numbered(count) else schema.categorical,
        table_rows=rows,
        bag_lengths=schema.lengths,
        shared_tables=shared,
        dense_features=len(schema.dense),
        labels=schema.labels if len(schema.labels) > 1 else (),
    )
    check_takes(config, schema.labels, "leave all but {} out of the schema's label")
    return config


def check_id_clock(id_clock: IdClock, config: Config, schema: Schema) -> None:
    """Checks that ids can lose their rows by the time of events, if they are to.

    Args:
        id_clock: clock of dynamic ids.
        config: config of the run.
        schema: meaning of the columns.

    Raises:
        UserError: no table has dynamic ids, or rows have no time.
    """
    if id_clock == "steps":
        return
    if not config.dynamic_ids:
        raise UserError(
            "id_clock: it has no effect without tables with dynamic ids; give --dynamic_ids, too"
        )
    if schema.timestamp is None:
        raise UserError(
            f"id_clock: {id_clock} are those of the schema's timestamp, and it has none; name the "
            f"column of times as timestamp in the schema"
        )


def check_schema(schema: Schema) -> None:
    """Checks that a stream has all that a schema names.

    Raises:
        UserError: a transform needs all rows of training, or the log isn't a table with names.
    """
    if schema.layout != "named":
        raise UserError(f"schema: layout: expected named for a stream, got {schema.layout!r}")
    if schema.standardized:
        raise UserError(
            f"schema: dense_transform: {schema.standardized[0]} is to be standardized, and the "
            f"mean of a stream isn't known; expected log or none"
        )
    if schema.bins:
        raise UserError(
            f"schema: bins: {min(schema.bins)} is to be cut into equal parts, and a stream hasn't "
            f"all of its rows; leave bins out, and name the column as dense"
        )
    if schema.separator != "," or schema.header:
        raise UserError(
            "schema: separator and header are of CSV files; the segments of a stream are Parquet "
            "or Arrow files"
        )


def fingerprint(schema: Schema) -> str:
    """The hash of what the ids and numbers of a stream mean, as checkpoints note that of data.

    Columns of groups and of time may change: no number of the model depends on them.
    """
    plain = dataclasses.asdict(Schema("label", ("id",)))
    fields = dataclasses.asdict(dataclasses.replace(schema, groups=(), timestamp=None))
    # Without defaults, so that a field which schemas get later leaves the hash as it is.
    given = {name: value for name, value in fields.items() if value != plain[name]}
    text = json.dumps(["stream", given], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
