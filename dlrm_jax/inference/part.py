"""Predictions of consecutive rows of logs or arrays, with what else is known of the rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32, Shaped

from dlrm_jax.data.arrays import Split


class Part(NamedTuple):
    """Predictions of consecutive rows.

    Attributes:
        logits: predictions, [N] float32, or [N, H] of several labels.
        labels: labels of the same shape; NaN where there is none.
        rows: the rows, with weights and groups; a weight is NaN where there is none.
        keys: the columns that are passed through, N rows; none of prepared arrays.
    """

    logits: Float32[np.ndarray, "N *_"]
    labels: Shaped[np.ndarray, "N *_"]
    rows: Split
    keys: pl.DataFrame
