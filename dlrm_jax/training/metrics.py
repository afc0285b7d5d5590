"""Metrics of a whole evaluation set, from all its logits, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from dlrm_jax.data.auc import auc
from dlrm_jax.errors import UserError

METRICS = ("log_loss", "auc", "normalized_entropy", "accuracy", "calibration")
HIGHER_IS_BETTER = {"auc": True, "accuracy": True, "log_loss": False, "normalized_entropy": False}
"""The metrics that can choose a model."""


def score(metrics: Mapping[str, Any] | None, name: str) -> float | None:
    """A metric that can choose a model, negated if less is better; None without a finite one."""
    value = metrics.get(name) if metrics else None
    if value is None or not math.isfinite(value):
        return None
    return value if higher_is_better(name) else -value


def higher_is_better(name: str) -> bool:
    """Whether more of a metric is better: of `HIGHER_IS_BETTER`, or recall@k of retrieval."""
    return name.startswith("recall@") or HIGHER_IS_BETTER[name]


def binary_metrics(
    logits: Float[np.ndarray, " N"], labels: Shaped[np.ndarray, " N"]
) -> dict[str, float | int]:
    """All metrics of a binary classifier.

    Args:
        logits: logits of label 1, [N].
        labels: labels, [N], from 0 to 1. For ``auc`` and ``accuracy``, those above 1/2 are 1.

    Returns:
        log_loss: mean binary cross-entropy, in nats.
        auc: area under the ROC curve; NaN if one class is missing.
        normalized_entropy: log_loss over that of always predicting the label rate (He et
            al., 2014, "Practical lessons from predicting clicks on ads at Facebook"); NaN
            if one class is missing.
        accuracy: share of samples on the right side of probability 1/2.
        calibration: mean prediction over mean label; NaN without a positive label.
        examples: N.

    Raises:
        UserError: there are no samples, or a logit isn't finite.
    """
    if not len(labels):
        raise UserError("metrics need at least one sample, got none")
    z = logits.astype(np.float64)
    if not np.isfinite(z).all():
        raise UserError(
            f"{np.sum(~np.isfinite(z))} of {len(z)} predictions aren't finite; lower the learning "
            f"rate, clip gradients, or look for values out of range in the data"
        )
    y = labels.astype(np.float64)
    log_loss = float(np.mean(np.logaddexp(0, z) - y * z))
    accuracy = float(np.mean((z > 0) == (y > 0.5)))
    probability = float(np.exp(-np.logaddexp(0, -z)).mean())
    return named_metrics(log_loss, auc(z, y), float(y.mean()), accuracy, probability, len(y))


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
