"""Trains and evaluates DLRM, or another model, on a log of clicks, purchases or other events.

    python -m dlrm_jax train --mesh=2x4
    python -m dlrm_jax train --data=log --workdir=runs/log
    python -m dlrm_jax train --data=train.txt --preset=kaggle --workdir=runs/kaggle
    python -m dlrm_jax train --data=tuesday --workdir=runs/tuesday --continue_from=runs/monday
    python -m dlrm_jax train --stream=segments --schema=schema.json --table_rows=1000000

``--data`` is a directory that ``dlrm_jax preprocess`` has made of any log, or a file of Criteo's.
Without it, the command generates examples whose best possible AUC is known; the first command
comes within 0.01 of it. Run the same command with the same workdir to resume, also on another mesh
or in another number of processes. ``--continue_from`` continues a run on the data of the next day.
``--stream`` follows a growing folder of segments, and evaluates each batch before it trains on it.
The same command with ``--standby`` waits beside a run and takes over if it ends or is killed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.config_file import check_file_read, config_of_flags, define_config_file
from dlrm_jax.cli.config_flags import check_read, define_run_flags, overridden_saved
from dlrm_jax.cli.continued import (
    before_rows,
    check_continue_flags,
    continued_config,
    define_continue_flag,
    told,
    with_earlier_names,
)
from dlrm_jax.cli.datasets import check_data_flags, define_data_flag
from dlrm_jax.cli.flags import FLAGS, chosen_workdir, define_workdir, refuse, refuse_unless
from dlrm_jax.cli.launch import launch
from dlrm_jax.cli.published import check_publish_flags, define_publish_flags, published
from dlrm_jax.cli.start import check_same_plan, define_process_flags, start
from dlrm_jax.cli.stream_flags import OF_STREAMS, define_stream_flags
from dlrm_jax.config import Config
from dlrm_jax.console import status
from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.inference.model_checks import check_functions, check_model
from dlrm_jax.processes import check_same
from dlrm_jax.run import Options
from dlrm_jax.run import run as run_job
from dlrm_jax.run_data import check_effects, is_new, load_data
from dlrm_jax.saved_config import trained_config
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import check_config, make_learner
from dlrm_jax.training.config_data import check_shared, generated_fingerprint
from dlrm_jax.training.label_metrics import prefix, rows_by_label
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.metrics import METRICS
from dlrm_jax.training.retention import Retention
from dlrm_jax.training.rows_by_id import STREAM
from dlrm_jax.training.saved_names import with_saved_names

define_run_flags(default_preset="small")
define_config_file()
define_process_flags()
define_data_flag()
define_workdir("Directory of metrics and checkpoints", "runs/kaggle")
flags.DEFINE_bool("tensorboard", False, "Also writes the metrics to WORKDIR/tensorboard.")
flags.DEFINE_bool(
    "eval_only",
    False,
    "Evaluates a checkpoint of the workdir without training; the checkpoint has the config.",
)
flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Checkpoint for --eval_only.")
flags.DEFINE_string(
    "warm_start",
    None,
    "Workdir of a run (its best checkpoint counts), one of its checkpoints, or directory of "
    "NAME.npy, that tables and layers start from; such as runs/kaggle.",
)
flags.DEFINE_list(
    "warm_start_names",
    [],
    "Tables and layers that --warm_start gives, or all; such as C1,C2,bottom.",
)

flags.DEFINE_bool(
    "standby",
    False,
    "Waits until the run that has the workdir ends or is killed, and goes on with it at once.",
)
flags.DEFINE_float(
    "journal_seconds",
    0.0,
    "Seconds between entries of the journal, which has what changes between checkpoints; 0 for "
    "none; such as 2.",
    0,
)

define_continue_flag()
define_stream_flags()
define_publish_flags()

# What decides which steps a run takes; the config's fields, which are flags as well, come with it.
_OF_ALL_PROCESSES = (
    "mesh", "emulate", "workdir", "eval_only", "checkpoint", "warm_start", "warm_start_names",
    "continue_from", "publish", "journal_seconds",
)  # fmt: skip


def main() -> None:
    """Mesh, data, learner, then what `dlrm_jax.run.run` does."""
    workdir = chosen_workdir("train")
    check_flags()
    if FLAGS.stream:
        from dlrm_jax.cli.train_stream import stream_config, train_stream  # with Polars

        config, schema = stream_config(workdir)
    else:
        config, schema, train_stream = chosen_config(workdir), None, None
    if FLAGS.journal_seconds and not (FLAGS.stream or config.checkpoint_every):
        raise UserError(
            "--journal_seconds needs checkpoints that entries follow, or the journal would grow "
            "for ever; give --checkpoint_every"
        )
    if FLAGS.processes > 1 and not FLAGS.coordinator:
        sys.exit(launch(FLAGS.processes, workdir))
    mesh = start(FLAGS.mesh, FLAGS.processes)
    new = is_new(workdir)
    if new:
        check_read([config])
        check_file_read([config])
    if mesh.size == 1:
        refuse(["check_copies_every"], "on a mesh of one device, which has no copies")
    check_same({name: FLAGS[name].value for name in _OF_ALL_PROCESSES})
    check_config(config, mesh)
    status(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    if schema and train_stream:
        train_stream(config, schema, mesh, workdir)
        return
    given = config
    config, data = load_data(config, FLAGS.data)
    if FLAGS.continue_from:
        config = with_earlier_names(config, given)
    config = with_saved_names(config, workdir)
    if new:
        check_effects(config, FLAGS.data)
        check_shared(config, data)
    check_same({"data": data.fingerprint, **dataclasses.asdict(config)})
    status(data.source)
    learner = make_learner(config, mesh, feeds=True)
    check_same_plan(learner.collection.plan)
    collection = learner.collection
    status(collection.plan.describe(collection.tables.values(), learner.axes.groups))
    status("kernels: " + ", ".join(f"{x} {y}" for x, y in learner.kernels_in_use.items()))

    status(f"workdir {workdir}")
    of_checkpoint = FLAGS.eval_only or FLAGS.continue_from
    options = Options(
        workdir,
        FLAGS.tensorboard,
        Path(FLAGS.warm_start) if FLAGS.warm_start else None,
        tuple(FLAGS.warm_start_names),
        Path(FLAGS.continue_from) if FLAGS.continue_from else None,
        FLAGS.checkpoint if FLAGS.eval_only else None,
        FLAGS.preset if FLAGS["preset"].present or not of_checkpoint else None,
        standby=FLAGS.standby,
        journal_seconds=FLAGS.journal_seconds,
    )
    kept = data.kept_negatives.get("train", 1.0)
    publication = published(workdir, config, learner, data.fingerprint, kept)
    options = dataclasses.replace(options, publication=publication)
    summary = run_job(config, data, learner, options, status).summary
    report(summary, workdir, learner.labels)


def chosen_config(workdir: Path) -> Config:
    """The config of the flags, or of a checkpoint that they change."""
    if FLAGS.continue_from:
        return continued_config(workdir)
    return evaluated(workdir) if FLAGS.eval_only else config_of_flags()


def evaluated(workdir: Path) -> Config:
    """The config of a run that is evaluated: that of its checkpoints, with flags that may change.

    Raises:
        UserError: there is no checkpoint whose metadata can be read, it is of a stream, or a flag
            contradicts it.
    """
    if not workdir.is_dir():
        raise UserError(f"--eval_only: expected the --workdir of a run, there is no {workdir}")
    checkpoints = Retention(workdir / "checkpoints", keep=1, best_metric="auc")
    damage = UserError(f"--eval_only: there is no checkpoint in {checkpoints.directory}")
    for step in reversed(checkpoints.steps()):  # all have the same config but for what may change
        checkpoint = checkpoints.path(step)
        try:
            metadata = read_metadata(checkpoint)
            saved = trained_config(checkpoint, metadata)
        except DamagedCheckpointError as error:
            damage = error
            continue
        if STREAM in metadata:
            raise UserError(
                f"--eval_only: {checkpoint} was trained on a stream, which isn't kept; "
                f"use a log: python -m dlrm_jax evaluate --checkpoint={workdir} --data=LOG"
            )
        if not FLAGS.data and metadata["identity"].get("data") != generated_fingerprint(saved):
            raise UserError(
                f"--eval_only: {checkpoint} wasn't trained on what its config generates; give the "
                f"--data of the training"
            )
        if FLAGS.model is None:
            check_model(checkpoint, saved, None)
        check_functions(checkpoint, saved, FLAGS.loss, FLAGS.metrics)
        return overridden_saved(saved, checkpoint, data_decide=bool(FLAGS.data))
    raise damage


def check_flags() -> None:
    """Refuses flags that are missing or that nothing would read."""
    refuse_unless(FLAGS.eval_only, "--eval_only", "checkpoint")
    if FLAGS.eval_only:
        why = "with --eval_only, which doesn't train"
        names = [
            "tensorboard",
            "warm_start",
            "warm_start_names",
            "continue_from",
            "steps",
            "epochs",
            "publish",
            "standby",
            "journal_seconds",
        ]
        refuse([*names, "config"], why)
    check_continue_flags()
    check_publish_flags()
    if FLAGS.standby:
        refuse(["coordinator"], "with --standby")
    if FLAGS.standby and FLAGS.processes > 1:
        raise UserError(f"--processes: expected 1 with --standby, got {FLAGS.processes}")
    refuse_unless(FLAGS.warm_start, "--warm_start", "warm_start_names")
    refuse_unless(FLAGS.coordinator, "--coordinator", "process")
    refuse_unless(FLAGS.processes > 1, "--processes", "coordinator")
    if FLAGS.warm_start and not FLAGS.warm_start_names:
        raise UserError("--warm_start needs --warm_start_names, such as all, or C1,C2,bottom")
    if FLAGS.coordinator and not FLAGS.workdir:
        raise UserError("--coordinator needs --workdir, the same in all processes")
    refuse_unless(FLAGS.stream, "--stream", *OF_STREAMS)
    if FLAGS.stream:
        from dlrm_jax.cli.train_stream import check_stream_flags

        check_stream_flags()
    else:
        check_data_flags()


def report(summary: dict[str, Any], workdir: Path, labels: Sequence[str]) -> None:
    """Prints the results, and where their files are."""
    names = {x: x for x in ("train", "validation", "test")}
    steps, best = summary["steps"], summary["best_step"]
    if not FLAGS.eval_only and best not in (None, steps):
        names["test_of_last"] = f"test, step {steps}"
        status(f"the best checkpoint is {workdir}/checkpoints/{best:08d}; its metrics:")
    before = before_rows(summary)
    titles = {name: name for name in before} | names
    of_label = rows_by_label(labels, summary | before, titles)
    status(text_table(["", *METRICS, "examples"], of_label))
    shown = {title: summary[x] for x, title in names.items() if x in summary}
    usual = {prefix(labels, label) + x for label in labels for x in (*METRICS, "examples")}
    further = [x for x in next(iter(shown.values())) if x not in usual]
    if further:
        rows = [[x, *(f"{metrics[x]:.5f}" for metrics in shown.values())] for x in further]
        status(text_table(["", *shown], rows))
    if update := told(summary):
        status(update)
    if summary["teacher_auc"]:
        status(f"best possible test AUC, that of the teacher: {summary['teacher_auc']:.5f}")
    if summary["examples_per_second"]:
        status(f"{summary['examples_per_second']:,.0f} examples/s in training")
    files = "evaluation.json" if FLAGS.eval_only else "summary.json, metrics.jsonl, checkpoints/"
    status(f"after {summary['steps']} steps; see {workdir}/{files}")
