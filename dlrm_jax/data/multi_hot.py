"""MLPerf's synthetic multi-hot features: each single id becomes several.

The benchmark DLRM-DCNv2 uses one published data set, derived from Criteo's one-hot data. Each id
selects a row of a table of random ids that begins with the id itself. The tables depend on their
sizes and a seed only, so the tables made here equal the published ones exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.formats.npy import ArrayWriter

MLPERF_SIZES = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
"""Ids per example of each of Criteo's features, from ``recommendation_v2`` in MLPerf Training."""

MLPERF_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10, 2209,
    11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip
"""Rows of each of Criteo's tables, from the same README; ids are taken modulo these."""

_CHUNK_DRAWS = 1 << 22


def synthetic_tables(
    rows: Sequence[int], sizes: Sequence[int], directory: Path, seed: int = 0
) -> list[Path]:
    """Draws the tables that expand one id into several.

    Row r of the table of a feature with n rows and h ids is r, then h - 1 numbers drawn uniformly
    from [0, n). One `numpy.random.RandomState` draws all tables, one after the other, as MLPerf's
    script does: a table depends on those before it, so every call draws all. Memory doesn't grow
    with the tables.

    Args:
        rows: rows of each feature's embedding table, n, less than 2**31.
        sizes: ids per example of each feature, h, at least 1.
        directory: directory for the files; it is made if missing, and its files are replaced.
        seed: seed of the generator; MLPerf uses 0.

    Returns:
        One .npy file per feature, int32 [n, h]; together they take 4 Σ n h bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(seed)
    paths = []
    for feature, (count, size) in enumerate(zip(rows, sizes, strict=True)):
        paths.append(directory / f"{feature}.npy")
        step = max(1, _CHUNK_DRAWS // size)
        with ArrayWriter(paths[-1], (count, size), np.int32) as writer:
            for start in range(0, count, step):
                chunk = np.empty((min(step, count - start), size), np.int32)
                chunk[:, 0] = np.arange(start, start + len(chunk))
                # The generator draws number after number: chunks change nothing.
                chunk[:, 1:] = random.randint(count, size=(len(chunk), size - 1), dtype=np.int64)
                writer.append(chunk)
    return paths


def expand(
    ids: Int32[np.ndarray, " N"], table: Int32[np.ndarray, "R H"]
) -> Int32[np.ndarray, "N H"]:
    """Expands each id, taken modulo R, into H ids by a table of `synthetic_tables`.

    `ABSENT` becomes a bag of absent ids. The table may be a memory map.
    """
    bags = np.asarray(table).take(ids % np.int32(len(table)), axis=0)
    bags[ids == ABSENT] = ABSENT
    return bags
