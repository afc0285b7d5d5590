"""Data in which some examples of label 0 were left out: predictions for data that have all.

`dlrm_jax preprocess --drop_negatives` keeps a share w of the negative training examples, so a model
learns odds that are 1/w of the real ones. With p the model's probability, q = p / (p + (1 - p)/w)
is that of all examples (He et al., 2014, "Practical lessons from predicting clicks on ads at
Facebook", section 6.3): the logit plus log w.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dlrm_jax.config import Config
from dlrm_jax.training.member_losses import MEMBER_LOSSES

KEPT_NEGATIVES = "kept_negatives"
"""The name under which a checkpoint notes the share of the negative examples it was trained on."""


def log_odds_shift(config: Config, kept: float) -> float:
    """What is added to the logits of a model, for probabilities of data with all examples.

    Args:
        config: config of training.
        kept: share of the negative training examples that were kept.

    Returns:
        log of the share, or 0 if the loss says nothing about odds, or the class weights change
        them, too; see `why_uncorrected`.
    """
    return 0.0 if kept == 1 or why_uncorrected(config) else math.log(kept)


def noted_shift(config: Config, metadata: Mapping[str, Any]) -> float:
    """`log_odds_shift` of a checkpoint, by its metadata; 0 of earlier versions, as it was there."""
    return log_odds_shift(config, metadata.get(KEPT_NEGATIVES, 1.0))


def noted_correction(config: Config, metadata: Mapping[str, Any]) -> str | None:
    """`correction_of` a checkpoint, by its metadata."""
    return correction_of(config, metadata.get(KEPT_NEGATIVES, 1.0))


def correction_of(config: Config, kept: float) -> str | None:
    """What is done to predictions, in words; None if all examples were kept."""
    if kept == 1:
        return None
    share = f"{kept:.4g} of the negative training examples were kept"
    if why := why_uncorrected(config):
        return f"{share}; predictions aren't corrected, since {why}"
    return f"{share}; predictions and metrics are corrected to all of them, AUC as it is"


def why_uncorrected(config: Config) -> str | None:
    """Why predictions stay as they are; None if they are corrected."""
    if config.loss not in ("bce", "mse", *MEMBER_LOSSES):
        return f"loss={config.loss} gives no probabilities of the training examples"
    negative, positive = config.class_weights
    if negative != positive:
        return f"class_weights={negative:g},{positive:g} change the odds, too"
    return None
