"""Settings that depend on the labels of the data, checked before the examples are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.training.label_metrics import prefix
from dlrm_jax.training.losses import group_column
from dlrm_jax.training.measures import choosing_metrics
from dlrm_jax.training.model import check_takes


def weight_of_label(config: Config) -> dict[str, float]:
    """The weight of each label in the loss, the main label first.

    Args:
        config: config of the run.

    Raises:
        UserError: there are more or fewer weights than labels.
    """
    names = config.labels or ("label",)
    weights = config.label_weights or [1.0] * len(names)
    if len(weights) != len(names):
        raise UserError(
            f"label_weights: expected a number for each of the labels {', '.join(names)}, got "
            f"{len(weights)}"
        )
    return dict(zip(names, weights, strict=True))


def check_label_settings(config: Config, labels: Sequence[str]) -> None:
    """Checks that the model, the loss and the choice of the best model fit the labels.

    Args:
        config: config of the run.
        labels: names of the labels that it trains, the main one first.

    Raises:
        UserError: a setting doesn't; the message names it.
    """
    check_takes(config, labels)
    if len(labels) > 1:
        weight_of_label(dataclasses.replace(config, labels=tuple(labels)))
    elif config.label_weights:
        raise UserError(
            f"label_weights: it has no effect with the one label {labels[0]}, got "
            f"{config.label_weights}; leave it out"
        )
    if len(labels) > 1 and group_column(config.loss):
        raise UserError(
            f"loss: {config.loss} compares examples by one label, and there are "
            f"{', '.join(labels)}; train one of them alone: labels={labels[0]}"
        )
    known = choosing_metrics(config)
    choices = [prefix(labels, label) + metric for label in labels for metric in known]
    if config.best_metric not in choices:
        raise UserError(
            f"best_metric: expected one of {', '.join(choices)}, got {config.best_metric!r}"
        )
