"""Ids of examples that are drawn at random, for benchmarks of lookups and of serving."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from dlrm_jax.data.generated.zipf import bounded_zipf


def draw_ids(
    table_rows: Sequence[int], count: int, exponent: float, seed: int
) -> Int32[np.ndarray, "N tables"]:
    """One id of each table for each example; hot rows lie anywhere, as in trained tables.

    Args:
        table_rows: rows of each table.
        count: number N of examples.
        exponent: exponent of Zipf's law; 0 for uniform ids.
        seed: seed.
    """
    rng = np.random.default_rng([seed, 1])
    columns = []
    for rows in table_rows:
        ranks = bounded_zipf(rng, rows, exponent, (count,)).astype(np.int64)
        columns.append(ranks * 0x9E3779B1 % rows)
    return np.stack(columns, axis=1).astype(np.int32)
