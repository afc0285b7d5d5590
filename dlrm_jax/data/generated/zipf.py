"""Draws ids by Zipf's law, for tables of any size."""

import math

import numpy as np
from jaxtyping import Float64, Int32, Num


def bounded_zipf(
    rng: np.random.Generator, rows: int, exponent: float, shape: tuple[int, ...]
) -> Int32[np.ndarray, "..."]:
    """Draws ids from 0 to rows - 1 with probability about proportional to (id + 1) ** -exponent.

    There may be up to 2**31 - 1 rows. The exponent 0 gives the uniform distribution.
    """
    return zipf_quantile(rng.random(shape), rows, exponent)


def zipf_quantile(
    u: Float64[np.ndarray, "..."], rows: int, exponent: float
) -> Int32[np.ndarray, "..."]:
    """The id below which a share `u` of the draws of `bounded_zipf` lies.

    It inverts the continuous power law on [1, rows + 1) and rounds down, so that memory doesn't
    grow with `rows`. The id is the rank less one, so hot rows lie together.
    """
    power = 1.0 - exponent
    log_end = math.log(rows + 1.0)
    if abs(power * log_end) < 1e-6:  # s = 1 is the limit of the general case
        ranks = np.exp(u * log_end)
    else:
        ranks = np.exp(np.log1p(u * math.expm1(power * log_end)) / power)
    return np.minimum(ranks, rows).astype(np.int32) - 1


def cumulative_zipf(
    ids: Num[np.ndarray, "..."], rows: int, exponent: float
) -> Float64[np.ndarray, "..."]:
    """The probability that `bounded_zipf` draws an id below each of `ids`, from 0 to rows."""
    power = 1.0 - exponent
    log_end, log_ids = math.log(rows + 1.0), np.log(ids + 1.0)
    if abs(power * log_end) < 1e-6:
        return log_ids / log_end
    return np.expm1(power * log_ids) / math.expm1(power * log_end)
