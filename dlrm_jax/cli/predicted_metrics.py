"""The metrics that `dlrm_jax predict` and `evaluate` print where the rows have labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dlrm_jax.cli.flags import FLAGS, paths
from dlrm_jax.cli.predicting_model import PredictingModel
from dlrm_jax.data.arrays import Split
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.headers import optional_columns
from dlrm_jax.errors import UserError
from dlrm_jax.training.extra_metrics import ExtraMetric, extra_metrics


class Chosen(NamedTuple):
    """The metrics besides the usual ones.

    Attributes:
        metrics: the metrics.
        places: places of the features that they group by.
        left_out: a line for each metric of training that isn't among them: why.
    """

    metrics: tuple[ExtraMetric, ...]
    places: Mapping[str, int]
    left_out: list[str]


def chosen_metrics(model: PredictingModel) -> Chosen:
    """The metrics besides the usual ones.

    Those of ``--metrics``, or else those of training. Of the latter, functions of a user's own are
    left out, since a checkpoint may come from anybody and importing a module runs it, and what
    groups by a column that the rows lack.

    Raises:
        UserError: a metric of ``--metrics`` can't be had.
    """
    inputs, asked = model.inputs, FLAGS.metrics is not None
    starts = np.cumsum([0, *inputs.bag_lengths[:-1]]).tolist()
    places = dict(zip(inputs.columns, starts, strict=True))
    there, chosen, left_out = dict.fromkeys((*places, *_groups(model))), [], []
    for metric in extra_metrics(tuple(FLAGS.metrics) if asked else model.metrics):
        why = None
        if metric.column and metric.column not in there:
            why = f"the rows have no column {metric.column!r} to group by"
        elif metric.function and not asked:
            why = f"it imports code: if you trust that, give --metrics={metric.name}"
        if why and asked:
            raise UserError(f"--metrics: {metric.name}: {why}; there are {', '.join(there)}")
        if why:
            left_out.append(f"{metric.name} isn't computed: {why}")
            continue
        metric.check_function()
        chosen.append(metric)
    return Chosen(tuple(chosen), places, left_out)


def _groups(model: PredictingModel) -> list[str]:
    """The columns of the schema's groups that the rows have."""
    logs = paths("data")
    if logs[0].is_dir():
        try:
            return Metadata.read(logs[0]).groups
        except UserError:  # arrays of other programs
            return []
    if not model.takes_raw_rows:
        return []
    return optional_columns(logs, *model.columns_of_logs)


def with_all_negatives(split: Split, described: Metadata) -> Split:
    """Rows in which each negative one stands for those that preparation has left out.

    Args:
        split: all rows of a directory, a day each.
        described: description of the directory.
    """
    days = list(split.days)
    for name, kept in described.kept_negatives.items():
        for number, first, stop in described.splits[name]:
            day, rows = days[number], slice(first, stop)
            weights = day.sample_weights
            weights = np.ones(len(day), np.float32) if weights is None else np.array(weights)
            weights[rows] /= np.where(day.labels[rows] > 0.5, 1, kept)
            days[number] = dataclasses.replace(day, sample_weights=weights)
    if described.kept_negatives:  # all days alike
        days = [
            dataclasses.replace(day, sample_weights=np.ones(len(day), np.float32))
            if day.sample_weights is None
            else day
            for day in days
        ]
    return Split(tuple(days))
