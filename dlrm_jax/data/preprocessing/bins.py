"""Bins: categorical columns of numbers, whose ids tell between which quantiles a number is.

The vocabulary of such a column has the least number of each bin, ascending, in place of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int32

from dlrm_jax.data.special_ids import FIRST_VALUE, MISSING

_SAMPLE = 1 << 22  # rows in memory; quantiles of so many are right to a twentieth of a percent


def learn(
    values: Sequence[pl.LazyFrame], rows: Sequence[int], count: int, sample: int = _SAMPLE
) -> pl.DataFrame:
    """The vocabulary of bins with about equally many training rows.

    A number that many rows have makes bins of more rows, and fewer of them.

    Args:
        values: column ``value`` of the training rows of each file, float64; nulls are left out.
        rows: number of rows of each of these.
        count: number of bins.
        sample: number of rows, evenly spaced, that the quantiles are taken of.
    """
    step = max(1, -(-sum(rows) // sample))
    frames = [frame.gather_every(step).collect() for frame in values]
    numbers = np.sort(pl.concat(frames)["value"].drop_nulls().to_numpy())
    inner = np.unique(numbers[np.arange(1, count) * len(numbers) // count]) if len(numbers) else []
    least = np.array([-np.inf, *(x for x in inner if x > numbers[0])])
    return pl.DataFrame(
        {
            "value": least,
            "count": np.bincount(_places(numbers, least), minlength=len(least)) * step,
            "id": np.arange(FIRST_VALUE, FIRST_VALUE + len(least), dtype=np.int32),
        },
        schema_overrides={"count": pl.UInt32},
    )


def encode(values: pl.Series, vocabulary: pl.DataFrame) -> Int32[np.ndarray, "N 1"]:
    """Maps numbers to the ids of their bins, and nulls to that of missing values.

    Args:
        values: N numbers.
        vocabulary: the whole vocabulary of `learn`.
    """
    bins = vocabulary.sort("value")
    present = values.is_not_null().to_numpy()
    places = _places(values.fill_null(0).to_numpy(), bins["value"].to_numpy())
    return np.where(present, bins["id"].to_numpy()[places], np.int32(MISSING))[:, None]


def _places(numbers: np.ndarray, least: np.ndarray) -> np.ndarray:
    return np.searchsorted(least, numbers, side="right") - 1
