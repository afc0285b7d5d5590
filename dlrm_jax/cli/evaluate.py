"""Evaluates a trained model on data with labels, and what it would cost to fade features.

    python -m dlrm_jax evaluate --checkpoint=runs/log --data=log
    python -m dlrm_jax evaluate --checkpoint=runs/log --data=log --metrics=gauc:user_id
    python -m dlrm_jax evaluate --checkpoint=runs/log --data=tuesday.parquet --fade=fade.json

The model is a run, of which the best checkpoint counts, one of its checkpoints, or an artifact.
The data are a directory of arrays, of which ``--split`` is evaluated, or raw logs.

``--fade`` names a schedule: times, and the share of requests that still see the feature.

    {"features": {"shop": [["2026-11-01T00:00:00Z", 1], ["2026-11-15T00:00:00Z", 0]]}}

The rows are predicted with each feature at each of its shares, and with all of them at each time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from jax.sharding import Mesh

from dlrm_jax.cli.flags import (
    FLAGS,
    mark_required,
    paths,
    refuse,
    require,
)
from dlrm_jax.cli.model_flags import chosen_model, define_model_flags
from dlrm_jax.cli.predicted_metrics import Chosen, chosen_metrics
from dlrm_jax.cli.predicting_model import PredictingModel, check_class, without_vocabularies
from dlrm_jax.cli.start import start
from dlrm_jax.console import status
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.metadata import METADATA
from dlrm_jax.errors import UserError
from dlrm_jax.inference.fade_schedule import FadeSchedule
from dlrm_jax.inference.faded_metrics import FadedMetrics
from dlrm_jax.inference.part import Part
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.vocabularies import check_same_data
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.text_table import text_table
from dlrm_jax.training.metrics import METRICS

flags.DEFINE_string(
    "checkpoint",
    None,
    "Workdir of a run, of which the best checkpoint counts, one of its checkpoints, or an "
    "artifact; such as runs/x.",
)
flags.DEFINE_list(
    "data",
    [],
    "Directory of arrays, or raw logs in the order of time; a path with a comma in double quotes; "
    "such as day_24.gz.",
)
flags.DEFINE_enum(
    "split", "test", ["train", "validation", "test"], "Split of a directory of arrays."
)
flags.DEFINE_string(
    "fade", None, "Schedule of features that are faded, a JSON file; such as fade.json."
)
define_model_flags()
flags.DEFINE_list(
    "metrics",
    None,
    "Metrics to print besides the usual ones, as for `dlrm_jax train`; without it, those of "
    "training that import nothing; such as gauc:user.",
)
mark_required("checkpoint", "data")


def main() -> None:
    """Model, rows, metrics."""
    require("checkpoint", "data")
    schedule = FadeSchedule.read(Path(FLAGS.fade)) if FLAGS.fade else None
    logs = paths("data")
    is_directory = any(path.is_dir() for path in logs)
    if is_directory and len(logs) > 1:
        raise UserError(f"--data: expected raw files or one directory, got {FLAGS.data}")
    if not is_directory:
        refuse(["split"], "with raw logs, all rows of which are evaluated")
    model = chosen_model()
    check_class(model, FLAGS.model)
    if not model.takes_raw_rows and (schedule or not is_directory):
        raise UserError(
            f"--{'fade' if is_directory else 'data'}: it isn't known what a missing value is, nor "
            f"what the ids of raw values are: {without_vocabularies(model)}"
        )
    mesh = start(FLAGS.mesh)
    check_batch_size(mesh, "--batch_size", FLAGS.batch_size)
    chosen = chosen_metrics(model)
    metrics = evaluated(model, mesh, logs, schedule, is_directory, chosen)
    show(metrics, model.inputs.labels, [name for x in chosen.metrics for name in x.numbers])
    for line in chosen.left_out:
        status(line)
    if model.correction:
        status(model.correction)


def evaluated(
    model: PredictingModel,
    mesh: Mesh,
    logs: Sequence[Path],
    schedule: FadeSchedule | None,
    is_directory: bool,
    chosen: Chosen,
) -> FadedMetrics:
    """The metrics of all rows, in each state of the schedule."""
    data = checked_data(logs[0], model) if is_directory else None
    predictor = Predictor.load(model.path, mesh, FLAGS.batch_size, FLAGS.model, model.vocabularies)
    metrics = FadedMetrics(predictor, schedule, (chosen.metrics, chosen.places))
    unseen = None if data else predictor.encoder.unseen_values()
    parts: Iterator[Part] = (
        predictor.of_split(rows_of(data), data.labels)
        if data
        else predictor.of_files(logs, unseen=unseen)
    )
    rows, states = metrics.add(parts), len(metrics.scenarios)
    of_states = f", in {states} states" if states > 1 else ""
    status(f"{rows:,} rows of {f'the {FLAGS.split} split' if data else 'the logs'}{of_states}")
    for warning in unseen.warnings() if unseen else []:
        status(f"warning: {warning}")
    return metrics


def checked_data(directory: Path, model: PredictingModel) -> Dataset:
    """The arrays of a directory that are like those of training.

    Raises:
        UserError: they are of other data, or an id isn't a row of its table; the split is empty.
    """
    if (directory / METADATA).exists():
        check_same_data(directory, model.path, model.fingerprint)
    data, inputs = load_directory(directory), model.inputs
    split = data.splits[FLAGS.split]
    if not len(split):
        raise UserError(f"--split: expected a split with rows, the {FLAGS.split} split has none")
    ranges = data.id_ranges if data.bag_lengths == inputs.bag_lengths else None
    check_ids(split, inputs.table_rows, inputs.bag_lengths, str(directory), ranges, inputs.columns)
    return data


def rows_of(data: Dataset) -> Split:
    """The split's rows; negative ones stand for those that preparation has left out."""
    split, kept = data.splits[FLAGS.split], data.kept_negatives.get(FLAGS.split, 1.0)
    if kept == 1:
        return split
    days = []
    for day in split.days:
        weights = (
            np.ones(len(day), np.float32) if day.sample_weights is None else day.sample_weights
        )
        weights = weights / np.where(np.asarray(day.labels) > 0.5, 1, kept)
        days.append(dataclasses.replace(day, sample_weights=weights.astype(np.float32)))
    return Split(tuple(days))


def show(metrics: FadedMetrics, labels: Sequence[str], extra: Sequence[str]) -> None:
    """Prints the metrics of each state, ``extra`` ones too, and what it costs in entropy."""
    costs = ["cost in NE"] if len(metrics.scenarios) > 1 else []
    lines, names = [], (*METRICS, *extra)
    for number, label in enumerate(labels or ("",)):
        found = metrics.metrics(number)
        if found is None:
            status(f"no metrics{f' of {label}' if label else ''}: no row has a label of 0 or 1")
            continue
        for scenario, each in zip(metrics.scenarios, found, strict=True):
            title = f"{scenario.name}, {label}" if len(labels) > 1 else scenario.name
            cost = (
                [cost_of(each, found[0])] if costs and each is not found[0] else [""] * len(costs)
            )
            lines.append(
                [title, *(f"{each[x]:.5f}" for x in names), f"{each['examples']:,}", *cost]
            )
    if lines:
        status(text_table(["", *names, "examples", *costs], lines))


def cost_of(faded: Mapping[str, float], covered: Mapping[str, float]) -> str:
    """What the normalized entropy has grown by, in percent of that of all features covered."""
    before, after = covered["normalized_entropy"], faded["normalized_entropy"]
    return f"{after / before - 1:+.3%}" if before else "-"
