"""Metrics of a whole evaluation set, from all its logits, in float64."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from dlrm_jax.data.auc import auc
from dlrm_jax.errors import UserError

METRICS = ("log_loss", "auc", "normalized_entropy", "accuracy", "calibration")
HIGHER_IS_BETTER = {"auc": True, "accuracy": True, "log_loss": False, "normalized_entropy": False}
"""The usual metrics that can choose a model."""

_KINDS = {
    "gauc": True,
    "recall_at_precision": True,
    "calibration_error": False,
    "calibration_by": False,
}
"""Of `extra_metrics`, by kind: the part before the colon."""

_ENDS = {":max": True, ":min": False}
_OF_RANKS = re.compile(r"(recall|ndcg|hr)@\d+|mrr")


def higher_is_better(name: str) -> bool:
    """Whether more of a metric is better, by its name alone; see also `extra_metrics`.

    Raises:
        UserError: that isn't known, so it can't choose a model.
    """
    parts = name.split("/")
    # A label's name may be in front, and the name of a column may have slashes.
    for i in range(len(parts)):
        known = _more_is_better("/".join(parts[i:]))
        if known is not None:
            return known
    raise UserError(
        f"best_metric: whether more of {name} is better isn't known; give it as {name}:max or "
        f"{name}:min, in metrics and here"
    )


def _more_is_better(metric: str) -> bool | None:
    """The same of a metric without a label; None of anything else."""
    kind, separator, _ = metric.partition(":")
    if metric in HIGHER_IS_BETTER:
        return HIGHER_IS_BETTER[metric]
    if separator and kind in _KINDS:
        return _KINDS[kind]
    if _OF_RANKS.fullmatch(metric):
        return True
    if "/" in metric:  # no function has one in its name
        return None
    return next((value for text, value in _ENDS.items() if metric.endswith(text)), None)


def score(metrics: Mapping[str, Any] | None, name: str) -> float | None:
    """A metric that can choose a model, negated if less is better; None without a finite one."""
    value = metrics.get(name) if metrics else None
    if value is None or not math.isfinite(value):
        return None
    return value if higher_is_better(name) else -value


def binary_metrics(
    logits: Float[np.ndarray, " N"],
    labels: Shaped[np.ndarray, " N"],
    weights: Float[np.ndarray, " N"] | None = None,
    shift: float = 0.0,
) -> dict[str, float | int]:
    """All metrics of a binary classifier.

    Args:
        logits: logits of label 1, [N].
        labels: labels, [N], from 0 to 1. For ``auc`` and ``accuracy``, those above 1/2 are 1.
        weights: weights of the examples, [N]; None if all are 1.
        shift: number to add to each logit, see `sampling.log_odds_shift`. The AUC is that of the
            logits as they are.

    Returns:
        log_loss: mean binary cross-entropy, in nats.
        auc: area under the ROC curve; NaN if one class is missing.
        normalized_entropy: log_loss over that of always predicting the label rate (He et
            al., 2014, "Practical lessons from predicting clicks on ads at Facebook"); NaN
            if one class is missing.
        accuracy: share of samples on the right side of probability 1/2.
        calibration: mean prediction over mean label; NaN without a positive label.
        examples: N.

        Means and shares are weighted ones.

    Raises:
        UserError: there are no samples, a logit isn't finite, or all weights are 0.
    """
    if not len(labels):
        raise UserError("metrics need at least one sample, got none")
    z = logits.astype(np.float64)
    if not np.isfinite(z).all():
        raise UserError(
            f"{np.sum(~np.isfinite(z))} of {len(z)} predictions aren't finite; lower the learning "
            f"rate, clip gradients, or look for values out of range in the data"
        )
    y, score, mean = labels.astype(np.float64), z, np.mean
    if weights is not None:
        weights = weights.astype(np.float64)
        if not weights.any():
            raise UserError(f"metrics need an example with a weight, got {len(y)} of weight 0")
        mean = functools.partial(np.average, weights=weights)
    if shift:
        z = z + shift
    log_loss = float(mean(np.logaddexp(0, z) - y * z))
    accuracy = float(mean((z > 0) == (y > 0.5)))
    probability = float(mean(np.exp(-np.logaddexp(0, -z))))
    area = auc(score, y, weights)
    return named_metrics(log_loss, area, float(mean(y)), accuracy, probability, len(y))


def named_metrics(
    log_loss: float, auc: float, rate: float, accuracy: float, probability: float, examples: int
) -> dict[str, float | int]:
    """The metrics as `binary_metrics` names them, from means over the examples.

    Args:
        log_loss: mean binary cross-entropy.
        auc: area under the ROC curve.
        rate: mean label.
        accuracy: share of samples on the right side.
        probability: mean prediction.
        examples: number of samples.
    """
    entropy = -sum(float(p * np.log(p)) for p in (rate, 1 - rate) if p > 0)
    return {
        "log_loss": log_loss,
        "auc": auc,
        "normalized_entropy": log_loss / entropy if entropy > 0 else float("nan"),
        "accuracy": accuracy,
        "calibration": probability / rate if rate > 0 else float("nan"),
        "examples": examples,
    }
