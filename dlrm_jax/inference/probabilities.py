"""Probabilities of logits, and the error of logits that have none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64

from dlrm_jax.data.arrays import Split
from dlrm_jax.errors import UserError

PROBABILITY = "probability"


def probability_columns(labels: Sequence[str]) -> list[str]:
    """The names of the columns of probabilities: of several labels, with the name of each."""
    return [PROBABILITY] if len(labels) < 2 else [f"{PROBABILITY}_{label}" for label in labels]


def sigmoid(logits: Float32[np.ndarray, "B *_"], shift: float = 0.0) -> Float64[np.ndarray, "B *_"]:
    """The probabilities of logits, in float64: float32 can't resolve those close to 1.

    Args:
        logits: logits.
        shift: number to add to them.
    """
    return np.exp(-np.logaddexp(0, -(logits.astype(np.float64) + shift)))


def check_finite(
    logits: Float32[np.ndarray, "B *_"], split: Split, first: int, number: int
) -> None:
    """Checks that predictions are finite.

    Args:
        logits: logits of consecutive examples.
        split: all examples.
        first: place of the first of them in the split.
        number: number of the first of them for messages.

    Raises:
        UserError: one isn't; the message names its row.
    """
    finite = np.isfinite(logits)
    if finite.all():
        return
    finite = finite.reshape(len(logits), -1).all(axis=1)
    row = int(np.argmin(finite))
    message = f"the prediction of row {number + row} (from 0) isn't finite"
    dense = split.take(np.array([first + row])).dense[0]
    if not len(dense):
        raise UserError(f"{message}: the tables or the parameters of the model are damaged")
    column = np.argmax(np.nan_to_num(np.abs(dense), nan=np.inf))
    if np.isnan(dense[column]):
        raise UserError(
            f"{message}: dense feature number {column} (from 0) is NaN, or null in JSON; encoded "
            f"features have no missing values, give a number"
        )
    raise UserError(
        f"{message}: the largest of its dense features is number {column} (from 0), "
        f"{dense[column]}; correct it if it is out of range"
    )
