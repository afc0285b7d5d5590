"""Trains a model of sequences: which of all items follows a user's history?

    python -m experiments.next_item --data=ml-100k --encoder=sasrec --workdir=runs/sasrec
    python -m experiments.next_item --log=views.parquet --user=user_id --item=item_id --time=at
    python -m experiments.next_item --preset=hstu_ml1m --data=ml-1m
    python -m experiments.next_item --mesh=2x4
    python -m experiments.next_item --preset=hstu_ml1m --mesh=1x8 --target=h100:8
    python -m experiments.next_item --data=ml-100k --workdir=runs/hstu --export=next

``--data`` is a MovieLens directory as GroupLens publishes it, or in RecBole's form; ``--log`` is a
Parquet or CSV file of your own with a row for each interaction. Each user's last item is asked for
among all items, and the last but one for validation; or what comes after a point in time. It prints
HR@k, NDCG@k, MRR and coverage beside those of a ranking by popularity, and the metrics of frequent
and of rare items. If the program is interrupted, run the same command again to resume.

``--export`` makes a directory of the best checkpoint, which `dlrm_jax.sequential.saved_model` reads
and ``dlrm_jax serve`` serves. Of a run that has ended, the same command with it trains no more.

Without ``--data`` and ``--log`` it generates histories whose order decides what follows, so that
the best ranking is known. ``--encoder=bag`` is blind to the order.

With ``--target`` nothing is trained: the train step is compiled for GPUs or TPUs that needn't be
there, as ``python -m dlrm_jax compile`` does. The data say how large a batch is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from absl import flags

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.compiled_step import (
    check_target,
    define_target,
    mesh_to_compile_for,
    report_step,
)
from dlrm_jax.cli.config_flags import define_field
from dlrm_jax.cli.exported_model import check_export, exporting
from dlrm_jax.cli.flags import (
    FLAGS,
    chosen_workdir,
    define_mesh,
    define_workdir,
    refuse,
)
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.data.movielens.formats import read_tables
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.sequential.batches import SequenceTraining
from dlrm_jax.sequential.interactions import Interactions, interactions_of
from dlrm_jax.sequential.item_values import plain_values
from dlrm_jax.sequential.metrics import STRATA, metrics
from dlrm_jax.sequential.model import learner_for
from dlrm_jax.sequential.presets import PRESETS
from dlrm_jax.sequential.questions import SPLITS, split_of
from dlrm_jax.sequential.recommender import Recommender
from dlrm_jax.sequential.run import Outcome
from dlrm_jax.sequential.run import run as run_sequences
from dlrm_jax.sequential.saved_model import write_model
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.sequential.step import make_sequential_step
from dlrm_jax.text_table import text_table
from experiments.next_item.own_log import read_log
from experiments.next_item.planted_order import generate, planted_order, planted_places

_GENERATED = ("users", "items", "longest")
_OF_LOG = ("user", "item", "time")

define_mesh()
flags.DEFINE_string("data", None, "Directory of MovieLens' files; such as ml-100k.")
flags.DEFINE_string("log", None, "Parquet or CSV file of interactions; such as views.parquet.")
flags.DEFINE_string("user", "user_id", "Column of the log that tells users apart; such as uid.")
flags.DEFINE_string("item", "item_id", "Column of the log that tells items apart; such as movie.")
flags.DEFINE_string(
    "time", "timestamp", "Column of the log with times, as seconds or dates; such as at."
)
flags.DEFINE_enum("split", "leave_one_out", list(SPLITS), "What is asked for.")
flags.DEFINE_enum(
    "preset", None, list(PRESETS), "Published settings, which the other flags change."
)
for _field in dataclasses.fields(SequentialSettings):
    define_field(_field, get_type_hints(SequentialSettings)[_field.name], _field.default)
define_workdir("Directory of metrics and checkpoints", "runs/sequences")
define_target(" and nothing is trained")
flags.DEFINE_string(
    "export", None, "Directory to make of the trained model, for recommending; such as next."
)
flags.DEFINE_integer("users", 4000, "Users of the generated histories; such as 1000.", 3)
flags.DEFINE_integer("items", 500, "Items of the generated histories; such as 2000.", 20)
flags.DEFINE_integer("longest", 60, "Longest generated history; such as 200.", 10)


def main() -> None:
    """Settings, interactions, split, then what `dlrm_jax.sequential.run.run` does."""
    check_flags()
    workdir, settings = chosen_workdir("next_item"), settings_of_flags()
    mesh = mesh_to_compile_for() if FLAGS.target else start(FLAGS.mesh)
    check_batch_size(mesh, "batch_size", settings.batch_size)
    status(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    if FLAGS.export:
        check_export(workdir)
    order = None
    if FLAGS.data:
        interactions = interactions_of(read_tables(Path(FLAGS.data)).ratings, *_OF_LOG)
    elif FLAGS.log:
        columns: Any = [FLAGS[name].value for name in _OF_LOG]
        interactions = interactions_of(read_log(Path(FLAGS.log), columns), *columns)
    else:
        order = planted_order(FLAGS.items, settings.seed)
        interactions = generate(order, FLAGS.users, FLAGS.longest, settings.seed)
    check_places(interactions, settings)
    if FLAGS.export:
        plain_values(interactions.values)  # what requests can't name is an error
    split = split_of(interactions, FLAGS.split)
    status(describe(interactions, split, settings))
    if FLAGS.target:
        batches = SequenceTraining(interactions, split.train, settings, mesh.size)
        learner = learner_for(len(interactions.values), batches.shapes, settings, mesh)
        batch = batches[0]
        ids = sum(x.size for x in (batch.items, batch.candidates, batch.targets))
        report_step(learner, make_sequential_step(learner, settings), batch, ids)
        return
    status(f"workdir {workdir}")
    outcome = run_sequences(interactions, split, settings, mesh, workdir, status)
    summary = dict(outcome.summary)
    if order:
        best = metrics(planted_places(order, interactions, split.test), settings.at)
        summary["test"] = {**summary["test"], "planted order": best}
    report(summary, workdir)
    if FLAGS.export:
        export(outcome, settings, interactions, workdir)


def check_flags() -> None:
    """Refuses flags that contradict each other or that nothing would read."""
    check_target()
    if FLAGS.target:
        refuse(["workdir", "export"], "with --target, for which nothing is trained")
    if FLAGS.data and FLAGS.log:
        raise UserError("--data and --log: expected one of them, got both")
    if not FLAGS.log:
        refuse(_OF_LOG, "without --log")
    if FLAGS.data or FLAGS.log:
        refuse(_GENERATED, "with --data or --log, which has users and items")
    settings = settings_of_flags()
    if not settings.is_sampled:
        refuse(["sampler"], "without --negatives")
    if settings.encoder == "bag":
        refuse(["layers", "heads"], "with --encoder=bag, which has neither")


def settings_of_flags() -> SequentialSettings:
    """The settings of the preset, changed by the flags that are given."""
    given: dict[str, Any] = {}
    for name in (x.name for x in dataclasses.fields(SequentialSettings)):
        if FLAGS[name].present:
            value = FLAGS[name].value
            given[name] = tuple(value) if isinstance(value, list) else value
    preset = PRESETS[FLAGS.preset] if FLAGS.preset else SequentialSettings()
    return dataclasses.replace(preset, **given)


def export(
    outcome: Outcome, settings: SequentialSettings, interactions: Interactions, workdir: Path
) -> None:
    """Writes the directory of the best checkpoint."""
    recommender = Recommender.of_state(
        outcome.learner, settings, outcome.state, interactions.values
    )
    found = {x: outcome.summary[x]["model"] for x in ("validation", "test") if x in outcome.summary}
    of_splits = {
        split: {name: x for name, x in own.items() if name != "strata"}
        for split, own in found.items()
    }
    with exporting(workdir) as path:
        write_model(path, recommender, path.name, outcome.summary["best_step"], of_splits)
    status(f"exported to {path}")


def check_places(interactions: Interactions, settings: SequentialSettings) -> None:
    """Checks that there are more items than places that are looked at.

    Raises:
        UserError: there aren't.
    """
    for name, k in (("at", max(settings.at)), ("metric", max(settings.at_with_metric))):
        if k >= len(interactions.values):
            raise UserError(
                f"{name}: expected numbers k below that of items, {len(interactions.values):,}, "
                f"got {k}; give a smaller one"
            )


def describe(interactions: Interactions, split: Any, settings: SequentialSettings) -> str:
    """One line: users, items, interactions, and how many of them are asked for."""
    lengths = interactions.lengths
    targets = np.maximum(split.train[:, 1] - split.train[:, 0] - 1, 0)
    if settings.pieces:
        targets = np.minimum(targets, settings.pieces * settings.max_length)
    train = targets.sum()
    return (
        f"{len(lengths):,} users with a mean of {lengths.mean():.0f} interactions, at most "
        f"{lengths.max():,}; {len(interactions.values):,} items; targets: training {train:,}, "
        f"validation {len(split.validation.asked):,}, test {len(split.test.asked):,}"
    )


def report(summary: dict[str, Any], workdir: Path) -> None:
    """Prints the metrics of each split, and those of the test by popularity of the item."""
    for split in ("validation", "test"):
        if split not in summary:
            continue
        found = summary[split]
        names = [name for name in found["model"] if name != "strata"]
        rows = [
            [ranking, *(f"{x[name]:.4f}" if name in x else "" for name in names)]
            for ranking, x in found.items()
        ]
        status(text_table([split, *names], rows))
    strata = summary["test"]["model"]["strata"]
    columns = list(next(iter(strata.values())))
    rows = [
        [name, *(f"{x:.4f}" if isinstance(x, float) else f"{x:,}" for x in strata[name].values())]
        for name in STRATA
        if name in strata
    ]
    status(text_table(["test by popularity", *columns], rows))
    status(
        f"best of {summary['steps']} steps is {summary['best_step']}; "
        f"{summary['tokens_of_filling']:.0%} of the tokens are filling; see {workdir}/summary.json"
    )


if __name__ == "__main__":
    run(main)
