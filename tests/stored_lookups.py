"""Lookups of stored tables of every kind, and what they give, with plain loops in float64."""

from __future__ import annotations

import numpy as np

from dlrm_jax.artifact.row_formats import decode, encode
from dlrm_jax.artifact.row_pooling import StoredLookup
from dlrm_jax.artifact.stored_tables import StoredTable

ROWS = 37
# Row format, numbers of a row, length of the bags, pooling, map of the ids.
KINDS = [
    ("float32", 16, 1, "sum", {}),
    ("bfloat16", 7, 3, "mean", {}),
    ("int8", 16, 1, "sum", {}),
    ("int8", 1, 5, "mean", {}),
    ("int4", 16, 4, "sum", {}),
    ("int4", 9, 3, "none", {}),
    ("int8", 64, 2, "none", {"floor_divide": 4}),
    ("int4", 102, 6, "mean", {"remainder": 5}),
    ("float32", 3, 2, "sum", {"remainder": ROWS}),
    ("bfloat16", 80, 20, "sum", {}),
]


def make_lookups() -> list[StoredLookup]:
    """A lookup of each kind, each of a table of its own."""
    rng, lookups, first = np.random.default_rng(0), [], 0
    for number, (row_format, dim, length, pooling, maps) in enumerate(KINDS):
        stored = encode(rng.normal(size=(ROWS, dim)).astype(np.float32), row_format)
        table = StoredTable(f"table {number}", stored, row_format, dim)
        columns = (first, first + length)
        lookups.append(StoredLookup(f"lookup {number}", table, columns, pooling, **maps))
        first += length
    return lookups


def draw_ids(lookups, samples: int, dtype=np.int32) -> np.ndarray:
    """Ids, with absent ones, empty bags and ids that occur twice."""
    rng = np.random.default_rng(samples)
    ids = rng.integers(-8, ROWS, (samples, lookups[-1].columns[1]))
    ids[:, -1] = ids[:, -2]
    ids[0] = -1
    return ids.astype(dtype)


def expected(lookup: StoredLookup, ids: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The vectors of a lookup, [n, dim] or [n, length, dim]."""
    table = decode(lookup.table.rows, lookup.table.row_format, lookup.table.dim).astype(np.float64)
    begin, end = lookup.columns
    vectors = np.zeros((len(ids), end - begin, lookup.table.dim))
    totals = np.zeros((len(ids), 1))
    for sample, bag in enumerate(ids[:, begin:end].tolist()):
        for i, number in enumerate(bag):
            if number < 0:
                continue
            weight = 1.0 if weights is None else float(weights[sample, begin + i])
            row = number // (lookup.floor_divide or 1) % (lookup.remainder or ROWS)
            vectors[sample, i] = weight * table[row]
            totals[sample] += weight
    if lookup.pooling == "none":
        return vectors
    sums = vectors.sum(axis=1)
    return sums if lookup.pooling == "sum" else sums / np.where(totals == 0, np.inf, totals)
