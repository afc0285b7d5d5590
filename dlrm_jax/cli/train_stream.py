"""``dlrm_jax train --stream``: the run that its flags describe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dlrm_jax.cli.config_file import config_of_flags
from dlrm_jax.cli.flags import FLAGS, refuse, require
from dlrm_jax.cli.published import published
from dlrm_jax.cli.start import check_same_plan
from dlrm_jax.config import Config
from dlrm_jax.console import status
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.processes import check_same
from dlrm_jax.saved_config import file_fields
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import (
    OF_SCHEMA,
    WITHOUT_EFFECT,
    check_id_clock,
    fingerprint,
    for_schema,
)
from dlrm_jax.stream.sources import source_opener
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import check_table_settings, make_learner
from dlrm_jax.training.label_metrics import rows_by_label
from dlrm_jax.training.metrics import METRICS

_OF_OTHERS = ("eval_only", "checkpoint", "warm_start", "warm_start_names", "continue_from", "data")
_OF_ALL_PROCESSES = (
    "stream_idle_seconds", "stream_checkpoint_seconds", "stream_window", "id_clock",
)  # fmt: skip


def check_stream_flags() -> None:
    """Refuses flags that nothing would read with ``--stream``."""
    require("schema")
    refuse(_OF_OTHERS, "with --stream")
    refuse(OF_SCHEMA, "with --stream: the schema decides")
    for name, why in WITHOUT_EFFECT.items():
        refuse([name], f"with --stream: {why}")
    if FLAGS.journal_seconds and not (FLAGS.stream_checkpoint_seconds or FLAGS.checkpoint_every):
        raise UserError(
            "--journal_seconds needs checkpoints that entries follow; give "
            "--stream_checkpoint_seconds or --checkpoint_every"
        )
    in_file = FLAGS.config and "table_rows" in file_fields(Path(FLAGS.config))
    if FLAGS.table_rows is None and not in_file:
        raise UserError(
            "--stream needs --table_rows: rows of the tables that ids are hashed to, one number "
            "for all or one for each categorical column; such as --table_rows=1000000"
        )


def stream_config(workdir: Path) -> tuple[Config, Schema]:
    """The config of the flags with what the schema decides, and the schema.

    Raises:
        UserError: see `source_opener` and `for_schema`.
    """
    schema = Schema.from_json(Path(FLAGS.schema))
    # What is wrong is said before devices are opened.
    source_opener(FLAGS.stream, schema, workdir, FLAGS.publish and Path(FLAGS.publish))
    config = for_schema(config_of_flags(), schema)
    check_table_settings(config)
    check_id_clock(FLAGS.id_clock, config, schema)
    return config, schema


def train_stream(config: Config, schema: Schema, mesh: Mesh, workdir: Path) -> None:
    """Runs to the end of the stream and prints the metrics of its last window."""
    check_same({name: FLAGS[name].value for name in _OF_ALL_PROCESSES})
    check_same({"data": fingerprint(schema), **dataclasses.asdict(config)})
    learner = make_learner(config, mesh)
    collection = learner.collection
    check_same_plan(collection.plan)
    status(collection.plan.describe(collection.tables.values(), learner.axes.groups))
    status("kernels: " + ", ".join(f"{x} {y}" for x, y in learner.kernels_in_use.items()))
    status(f"workdir {workdir}")
    options = StreamOptions(
        workdir,
        FLAGS.stream_idle_seconds,
        FLAGS.stream_checkpoint_seconds,
        FLAGS.stream_window,
        FLAGS.tensorboard,
        FLAGS.preset,
        FLAGS.standby,
        FLAGS.journal_seconds,
        id_clock=FLAGS.id_clock,
    )
    publication = published(workdir, config, learner, fingerprint(schema), schema=schema)
    summary = run_stream(
        config,
        schema,
        source_opener(FLAGS.stream, schema, workdir),
        learner,
        dataclasses.replace(options, publication=publication),
        status,
    )
    _report(summary, workdir, schema)


def _report(summary: dict[str, Any], workdir: Path, schema: Schema) -> None:
    if summary["prequential"]:
        titles = {"prequential": "last window"}
        status(
            text_table(["", *METRICS, "examples"], rows_by_label(schema.labels, summary, titles))
        )
    if summary["examples_per_second"]:
        status(f"{summary['examples_per_second']:,.0f} examples/s in training")
    place = summary["position"]
    where = f", up to row {place['row']:,} of {place['segment']}" if place else ""
    status(
        f"after {summary['steps']} steps and {summary['examples']:,} examples{where}; see "
        f"{workdir}/summary.json, metrics.jsonl, checkpoints/"
    )
