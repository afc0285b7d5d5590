"""Orders of a table's rows, and the memory that batches touch in each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64, Integer

from dlrm_jax.data.arrays import ABSENT, Dataset, Split
from dlrm_jax.data.generated.locality import NEW, stack_distances

ORDERS = ("frequency", "first_seen", "random")
"""By descending frequency in the training split, by first appearance in it, at random."""

Batches = Sequence[Sequence[Int32[np.ndarray, " N"]]]
"""The rows that each batch looks up in each table."""

_EXAMPLES_PER_CHUNK = 1 << 16


def ordered_ids(
    data: Dataset, occurrences: Sequence[Int64[np.ndarray, " R"]], examples: int, seed: int
) -> dict[str, Int32[np.ndarray, "N C"]]:
    """Ids of the first validation examples, renumbered for each order of rows.

    ``occurrences`` is the number of lookups of each row in the training split, by table.
    """
    ids = np.asarray(data.validation.take(np.arange(min(examples, len(data.validation)))).ids)
    reordered = {order: np.full_like(ids, ABSENT) for order in ORDERS}
    for i, own in enumerate(_columns(data)):
        first = first_lookups(data.train, own, data.table_rows[i])
        rng = np.random.default_rng([seed, i])
        for order, place in places(occurrences[i], first, rng).items():
            reordered[order][:, own] = np.where(ids[:, own] == ABSENT, ABSENT, place[ids[:, own]])
    return reordered


def in_batches(data: Dataset, ids: Int32[np.ndarray, "N C"], size: int, most: int) -> Batches:
    """Cuts ids into batches of ``size`` examples, at most ``most``."""
    return [
        [bags[bags != ABSENT] for bags in (ids[begin : begin + size, x] for x in _columns(data))]
        for begin in range(0, len(ids) - size + 1, size)[:most]
    ]


def _columns(data: Dataset) -> list[slice]:
    """The columns of each table among the ids of an example."""
    return list(itertools.starmap(slice, itertools.pairwise(np.cumsum([0, *data.bag_lengths]))))


def first_lookups(split: Split, columns: slice, rows: int) -> Int64[np.ndarray, " R"]:
    """The number of each row's first lookup; rows without one get a number above all others.

    ``columns`` are those of the table among the ids of an example; the arrays may be memory maps.
    """
    first = np.full(rows, np.iinfo(np.int64).max)
    lookups = 0
    for day in split.days:
        for start in range(0, len(day), _EXAMPLES_PER_CHUNK):
            ids = np.asarray(day.ids[start : start + _EXAMPLES_PER_CHUNK])[:, columns].ravel()
            ids = ids[ids != ABSENT]
            np.minimum.at(first, ids, np.arange(lookups, lookups + len(ids)))
            lookups += len(ids)
    return first


def places(
    occurrences: Int64[np.ndarray, " R"], first: Int64[np.ndarray, " R"], rng: np.random.Generator
) -> dict[str, Int32[np.ndarray, " R"]]:
    """The place of each row, by order, from its number of lookups and its `first_lookups`.

    Rows that an order doesn't distinguish, such as those that occur once, are in random order.
    """
    shuffled = rng.permutation(len(first)).astype(np.int32)
    rows = {
        "frequency": shuffled[np.argsort(-occurrences[shuffled], kind="stable")],
        "first_seen": shuffled[np.argsort(first[shuffled], kind="stable")],
        "random": shuffled,
    }
    found = {name: np.empty_like(shuffled) for name in ORDERS}
    for name in ORDERS:
        found[name][rows[name]] = np.arange(len(first), dtype=np.int32)
    return found


def units(rows: Integer[np.ndarray, " N"], row_bytes: int, unit: int) -> Int64[np.ndarray, " K"]:
    """The cache lines or pages of ``unit`` bytes of rows, row by row; a row may span several.

    The array begins with a line or page.
    """
    begin = rows.astype(np.int64) * row_bytes
    first, last = begin // unit, (begin + row_bytes - 1) // unit
    counts = last - first + 1
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first, counts) + within


def touched(batches: Batches, row_bytes: int, unit: int) -> float:
    """The mean number of distinct lines or pages that a batch touches in all tables."""
    counts = [len(np.unique(units(np.unique(x), row_bytes, unit))) for b in batches for x in b]
    return sum(counts) / len(batches)


def hit_rate(
    batches: Batches, table_rows: Sequence[int], row_bytes: int, unit: int, capacity: int
) -> float:
    """The share of accesses that an LRU cache of lines or pages serves, empty at first.

    The rows of a batch are read table after table. ``capacity`` is in bytes.
    """
    sizes = [-(-rows * row_bytes // unit) for rows in table_rows]
    starts = np.cumsum([0, *sizes[:-1]])
    trace = [
        start + units(rows, row_bytes, unit)
        for batch in batches
        for start, rows in zip(starts, batch, strict=True)
    ]
    distances = stack_distances(np.concatenate(trace))
    hits = (distances != NEW) & (distances <= capacity // unit)
    return float(hits.mean())


def imbalance(batches: Batches, shards: int, distinct: bool, turned: bool = False) -> float:
    """Lookups of the busiest shard over the mean, where row r is on shard r mod `shards`.

    The mean over batches. A row counts once in a batch if ``distinct``. If ``turned``, each table
    begins one shard after the one before.
    """
    ratios = []
    for batch in batches:
        loads = np.zeros(shards)
        for number, rows in enumerate(batch):
            looked_up = np.unique(rows) if distinct else rows
            loads += np.bincount((looked_up + number * turned) % shards, minlength=shards)
        ratios.append(loads.max() / loads.mean())
    return float(np.mean(ratios))
