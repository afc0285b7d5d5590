"""Losses of logits and labels: one value per sample, which depends on that sample alone.

Losses of a group of samples, such as a request, are in `ranking_losses`, those of the members of an
ensemble in `member_losses`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dlrm_jax.errors import UserError
from dlrm_jax.training.member_losses import MEMBER_LOSSES, MemberLoss
from dlrm_jax.training.named_functions import named_function
from dlrm_jax.training.ranking_losses import RANKING_LOSSES, RankingLoss

Loss = Callable[[Float[Array, " B"], Float[Array, " B"]], Float[Array, " B"]]

_PROBED = 4


def bce(logits: Float[Array, " B"], labels: Float[Array, " B"]) -> Float[Array, " B"]:
    """Binary cross-entropy, in nats."""
    return optax.sigmoid_binary_cross_entropy(logits, labels)


def mse(logits: Float[Array, " B"], labels: Float[Array, " B"]) -> Float[Array, " B"]:
    """Squared error of the probability."""
    return jnp.square(jax.nn.sigmoid(logits) - labels)


def focal(
    logits: Float[Array, " B"],
    labels: Float[Array, " B"],
    gamma: float = 2.0,
    alpha: float | None = 0.25,
) -> Float[Array, " B"]:
    """Cross-entropy times (1 - p)^gamma, with p the probability of the label (arXiv 1708.02002).

    Args:
        logits: logits of label 1.
        labels: 0 or 1.
        gamma: exponent, by which examples that are right already count less; 0 for cross-entropy.
        alpha: weight of label 1, of which that of label 0 is 1 - alpha; None for 1 and 1.
    """
    return optax.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)


def fake_negative_weighted(
    logits: Float[Array, " B"], labels: Float[Array, " B"]
) -> Float[Array, " B"]:
    """Cross-entropy of a log in which each row is negative first, and positive rows come again.

    With p the probability of a row, a share 1 / (1 + p) of its examples is negative. Importance
    weights, 1 + p for label 1 and (1 - p) (1 + p) for label 0, make the loss that of p (Ktena et
    al., 2019, arXiv 1907.06558, "fake negative weighted"); p is the model's own, as a
    constant.
    """
    p = jax.lax.stop_gradient(jax.nn.sigmoid(logits))
    return (1 + p) * (1 - p * (1 - labels)) * bce(logits, labels)


LOSSES: dict[str, Loss] = {
    "bce": bce,
    "mse": mse,
    "fake_negative_weighted": fake_negative_weighted,
}
"""The losses without arguments."""


def make_loss(text: str) -> Loss | RankingLoss | MemberLoss:
    """The loss that a config names.

    Args:
        text: see `Config`: a name, focal:GAMMA:ALPHA, pairwise:COLUMN, listwise:COLUMN, or
            MODULE:FUNCTION, whose module is imported.

    Raises:
        UserError: there is no such loss, a number is out of range, or the function doesn't give
            one value per sample.
    """
    kind, separator, argument = text.partition(":")
    if text in LOSSES:
        return LOSSES[text]
    if text in MEMBER_LOSSES:
        return MEMBER_LOSSES[text]
    if kind == "focal":
        return _focal_of(text, argument if separator else None)
    if kind in RANKING_LOSSES:
        if not argument:
            raise UserError(
                f"loss: {kind} needs the column whose values are the groups, such as "
                f"{kind}:request; got {text!r}"
            )
        return RANKING_LOSSES[kind](argument)
    if not own_function(text) or not argument:
        raise UserError(
            f"loss: expected {', '.join(LOSSES)}, focal, focal:GAMMA:ALPHA, "
            f"{', '.join(MEMBER_LOSSES)}, pairwise:COLUMN, listwise:COLUMN or MODULE:FUNCTION; got "
            f"{text!r}"
        )
    return _own(text)


def group_column(text: str) -> str | None:
    """The column of a ranking loss; None of other losses, which are not imported."""
    kind, _, argument = text.partition(":")
    return argument if kind in RANKING_LOSSES else None


def own_function(text: str) -> bool:
    """Whether a loss is MODULE:FUNCTION."""
    kind, separator, _ = text.partition(":")
    return bool(separator) and kind not in (*RANKING_LOSSES, *LOSSES, *MEMBER_LOSSES, "focal")


def class_weighted(loss: Loss, negative: float, positive: float) -> Loss:
    """Multiplies a loss by ``negative`` for label 0 and by ``positive`` for label 1."""
    if negative == positive == 1:
        return loss
    return lambda logits, labels: loss(logits, labels) * (negative + (positive - negative) * labels)


def _focal_of(text: str, argument: str | None) -> Loss:
    if argument is None:
        return focal
    numbers = argument.split(":")
    try:
        gamma, alpha = (*map(float, numbers), *[None] * (2 - len(numbers)))
    except ValueError:
        gamma = alpha = -1.0
    assert gamma is not None
    if not (0 <= gamma < float("inf") and (alpha is None or 0 < alpha < 1)):
        raise UserError(
            f"loss: focal:GAMMA:ALPHA needs a GAMMA of 0 or more and an ALPHA between 0 and 1, "
            f"such as focal:2:0.25, or GAMMA alone; got {text!r}"
        )
    return functools.partial(focal, gamma=gamma, alpha=alpha)


def _own(text: str) -> Loss:
    loss = named_function("loss", text)
    samples = jax.ShapeDtypeStruct((_PROBED,), jnp.float32)
    try:
        found: Any = jax.eval_shape(loss, samples, samples)
    except Exception as error:
        raise UserError(
            f"loss: {text} failed with the logits and labels of {_PROBED} samples: {error!r}"
        ) from error
    dtype = getattr(found, "dtype", np.object_)
    if np.shape(found) != (_PROBED,) or not jnp.issubdtype(dtype, jnp.floating):
        got = f"a {type(found).__name__}"
        if hasattr(found, "dtype"):
            got = f"{dtype} of shape {found.shape}"
        if got.endswith("shape ()"):
            got = "one for all; return them before their mean, [B]"
        raise UserError(
            f"loss: expected {text} to return a number for each of {_PROBED} samples, got {got}"
        )
    return loss
