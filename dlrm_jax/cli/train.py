"""Trains and evaluates DLRM, or another model, on Criteo-like data.

    python -m dlrm_jax train --mesh=2x4
    python -m dlrm_jax train --data=train.txt --preset=kaggle --workdir=runs/kaggle

Without ``--data`` it generates examples whose best possible AUC is known; the first command
comes within 0.01 of it. Run the same command with the same workdir to resume, also on another mesh
or in another number of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dlrm_jax.cli.config_flags import define_run_flags, with_flags
from dlrm_jax.cli.datasets import check_data_flags, define_data_flag, load_data
from dlrm_jax.cli.flags import FLAGS, refuse
from dlrm_jax.cli.launch import launch
from dlrm_jax.cli.start import define_process_flags, describe_devices, start, versions
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.data.directory import Metadata
from dlrm_jax.embedding import Plan
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_text
from dlrm_jax.inference import vocabularies
from dlrm_jax.presets import preset
from dlrm_jax.processes import check_same, is_process_0
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import check_batch_sizes, make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.evaluation import evaluate
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.loop import Intervals, Metrics, train
from dlrm_jax.training.metrics import METRICS
from dlrm_jax.training.record import Record, owned, to_json
from dlrm_jax.training.step import make_predict, make_train_step
from dlrm_jax.training.warm_start import warm_start

define_run_flags(default_preset="small")
define_process_flags()
define_data_flag()
flags.DEFINE_string(
    "workdir",
    None,
    "Directory of metrics and checkpoints; without it, a new one in runs/; such as runs/kaggle.",
)
flags.DEFINE_bool("tensorboard", False, "Also writes the metrics to WORKDIR/tensorboard.")
flags.DEFINE_bool("eval_only", False, "Evaluates a checkpoint of the workdir without training.")
flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Checkpoint for --eval_only.")
flags.DEFINE_string(
    "warm_start",
    None,
    "Checkpoint, or directory of NAME.npy, that tables and layers start from; such as "
    "runs/kaggle/checkpoints/00300000.",
)
flags.DEFINE_list(
    "warm_start_names", [], "Tables and layers that --warm_start gives; such as C1,C2,bottom."
)

# What decides which steps a run takes; the config's fields, which are flags as well, come with it.
_OF_ALL_PROCESSES = (
    "mesh", "workdir", "eval_only", "checkpoint", "warm_start", "warm_start_names"
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Mesh, data, learner, state, training, evaluation, in this order."""
    del argv
    config = with_flags(preset(FLAGS.preset))
    check_flags()
    directory = Path(FLAGS.workdir or time.strftime("runs/criteo-%Y%m%d-%H%M%S"))
    if FLAGS.processes > 1 and not FLAGS.coordinator:
        sys.exit(launch(FLAGS.processes, directory))
    mesh = start(FLAGS.mesh, FLAGS.processes)
    check_same({name: FLAGS[name].value for name in _OF_ALL_PROCESSES})
    check_batch_sizes(config, mesh)  # before the data, which may take long
    print(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    config, data = load_data(config)
    check_same({"data": data.fingerprint, **dataclasses.asdict(config)})
    print(data.source)
    learner = make_learner(config, mesh)
    check_same(pieces_by_table(learner.collection.plan))
    print(learner.collection.plan.describe(learner.collection.tables.values()))
    print("kernels: " + ", ".join(f"{x} {y}" for x, y in learner.kernels.items()))

    if FLAGS.eval_only and not directory.is_dir():
        raise UserError(f"--eval_only: expected the --workdir of a run, there is no {directory}")
    print(f"workdir {directory}")
    with owned(directory) as workdir, contextlib.ExitStack() as opened:
        checkpoints = Checkpoints(
            workdir / "checkpoints",
            {"data": data.fingerprint, **config.identity()},
            config.keep_checkpoints,
            config.best_metric,
        )
        checkpoints.sweep()
        state, resumed_from = first_state(config, learner, checkpoints, data)
        if data.directory and not FLAGS.eval_only:
            vocabularies.keep(data.directory, data.fingerprint, workdir)
        notes = {"mesh": FLAGS.mesh, "plan": json.loads(learner.collection.plan.to_json()),
                 "config": dataclasses.asdict(config), "versions": versions()}  # fmt: skip
        predict = make_predict(learner)

        def metrics_of(state: TrainState, split: str) -> Metrics:
            rows = data.splits[split]
            if split == "train":  # as many as there are to validate: the rest says no more
                rows = rows[: len(data.validation)]
            return evaluate(learner, predict, state, rows, config.evaluation_batch_size)

        def keep(state: TrainState, validation: Metrics | None, due: bool) -> None:
            if due or checkpoints.improves(validation):
                checkpoints.save(learner, state, notes, validation)

        results: dict[str, Metrics] = {}
        examples_per_second = None
        record = None
        if not FLAGS.eval_only:
            events = workdir / "tensorboard" if FLAGS.tensorboard else None
            record = Record(workdir / "metrics.jsonl", resumed_from or 0, events)
            opened.enter_context(record)
            batches = TrainBatches(
                data.train,
                config.batch_size,
                config.seed,
                config.shuffle_window,
                jax.process_index(),
                jax.process_count(),
            )
            trained = train(
                learner,
                make_train_step(learner),
                state,
                batches,
                last_step(config, batches, checkpoints, resumed_from),
                Intervals(config.log_every, config.eval_every, config.checkpoint_every),
                validate=lambda state: metrics_of(state, "validation"),
                keep=keep,
                record=record,
                target_auc=config.target_auc,
            )
            state, examples_per_second = trained.state, trained.examples_per_second
            results["validation"] = trained.validation

        # The test split is read here and nowhere else: it chooses nothing.
        # One after the other in all processes: a set would be in an order of its own in each.
        for split in data.splits:
            if split not in results:
                results[split] = metrics_of(state, split)
        if record:
            record(int(state.step), "test", results["test"])
        summary = {
            "mesh": FLAGS.mesh,
            "devices": describe_devices(mesh),
            "preset": FLAGS.preset,
            "steps": int(state.step),
            "batch_size": config.batch_size,
            **results,
            "teacher_auc": data.teacher_auc and data.teacher_auc["test"],
            "examples_per_second": examples_per_second,
            "resumed_from": resumed_from,
            "best_step": checkpoints.best(),
        }
        if is_process_0():
            write_text(workdir / "summary.json", to_json(summary, indent=1))
        report(summary, workdir)


def check_flags() -> None:
    """Refuses flags that are missing or that nothing would read.

    Raises:
        UserError: naming the flag.
    """
    for flag, needed, given in (
        ("checkpoint", "--eval_only", FLAGS.eval_only),
        ("warm_start_names", "--warm_start", FLAGS.warm_start),
        ("process", "--coordinator", FLAGS.coordinator),
        ("coordinator", "--processes", FLAGS.processes > 1),
    ):
        if not given:
            refuse([flag], f"without {needed}")
    if FLAGS.coordinator and not FLAGS.workdir:
        raise UserError("--coordinator needs --workdir, the same in all processes")
    if FLAGS.eval_only and FLAGS.tensorboard:
        refuse(["tensorboard"], "with --eval_only, which records no metrics")
    check_data_flags()


def pieces_by_table(plan: Plan) -> dict[str, Any]:
    """A plan as `check_same` compares it: it may come from a file that another machine has, too."""
    pieces: dict[str, Any] = {}
    for piece in plan.pieces:
        pieces.setdefault(f"the plan of {piece.table}", []).append(dataclasses.asdict(piece))
    return pieces


def last_step(
    config: Config, batches: TrainBatches, checkpoints: Checkpoints, resumed_from: int | None
) -> int:
    """The total of steps; a run that had reached its target has none left."""
    if resumed_from and config.target_auc:
        validation = checkpoints.metadata(resumed_from)["validation"]
        if validation and validation["auc"] >= config.target_auc:
            return resumed_from
    return config.steps or config.epochs * batches.steps_per_epoch


def first_state(
    config: Config, learner: Learner, checkpoints: Checkpoints, data: Dataset
) -> tuple[TrainState, int | None]:
    """The state to go on from, and the step that it was saved at; None for a fresh one."""
    steps = checkpoints.steps()
    if steps:
        step = checkpoints.best() if FLAGS.eval_only and FLAGS.checkpoint == "best" else steps[-1]
        if step is None:
            raise UserError(f"no checkpoint in {checkpoints.directory} was validated")
        print(f"restoring step {step} from {checkpoints.directory}")
        return checkpoints.restore(learner, step), step
    if FLAGS.eval_only:
        raise UserError(f"--eval_only: there is no checkpoint in {checkpoints.directory}")
    if FLAGS.warm_start:
        if not FLAGS.warm_start_names:
            raise UserError("--warm_start needs --warm_start_names, such as C1,C2,bottom")
        source, names = Path(FLAGS.warm_start), FLAGS.warm_start_names
        same_ids = None
        if data.directory:
            same_ids = [data.fingerprint, *Metadata.read(data.directory).grown_from]
        return warm_start(learner, config.seed, source, names, same_ids), None
    return learner.init(config.seed), None


def report(summary: dict[str, Any], workdir: Path) -> None:
    """Prints the results, and where their files are."""
    rows = [
        [x, *(f"{summary[x][y]:.5f}" for y in METRICS), f"{summary[x]['examples']:,}"]
        for x in ("train", "validation", "test")
    ]
    print(text_table(["", *METRICS, "examples"], rows))
    if summary["teacher_auc"]:
        print(f"best possible test AUC, that of the teacher: {summary['teacher_auc']:.5f}")
    if summary["examples_per_second"]:
        print(f"{summary['examples_per_second']:,.0f} examples/s in training")
    print(
        f"after {summary['steps']} steps; see {workdir}/summary.json, metrics.jsonl, checkpoints/"
    )
