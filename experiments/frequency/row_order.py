"""Orders in which the rows of a table can lie, and what batches touch of memory in each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64, Integer

from dlrm_jax.data.arrays import ABSENT, Dataset, Split
from dlrm_jax.data.generated.locality import NEW, stack_distances

ORDERS = ("frequency", "first_seen", "random")
"""By descending frequency in the training part, by first appearance in it, by chance."""

Batches = Sequence[Sequence[Int32[np.ndarray, " N"]]]
"""Of each batch, the rows that it looks up in each table, one table after the other."""

_EXAMPLES_PER_BLOCK = 1 << 16


def ordered_ids(
    data: Dataset, occurrences: Sequence[Int64[np.ndarray, " R"]], examples: int, seed: int
) -> dict[str, Int32[np.ndarray, "N C"]]:
    """By order, ids of the first validation examples as they are with the rows in that order.

    Args:
        data: whose training part decides the orders.
        occurrences: of each table, how often the training part looks up each row.
        examples: N at most.
        seed: of the random order.
    """
    given = np.asarray(data.validation.take(np.arange(min(examples, len(data.validation)))).ids)
    found = {order: np.full_like(given, ABSENT) for order in ORDERS}
    for i, own in enumerate(_columns(data)):
        first = first_lookups(data.train, own, data.table_rows[i])
        rng = np.random.default_rng([seed, i])
        for order, place in places(occurrences[i], first, rng).items():
            found[order][:, own] = np.where(given[:, own] == ABSENT, ABSENT, place[given[:, own]])
    return found


def in_batches(data: Dataset, ids: Int32[np.ndarray, "N C"], size: int, most: int) -> Batches:
    """The first batches of so many examples, at most some."""
    return [
        [bags[bags != ABSENT] for bags in (ids[begin : begin + size, x] for x in _columns(data))]
        for begin in range(0, len(ids) - size + 1, size)[:most]
    ]


def _columns(data: Dataset) -> list[slice]:
    """Where the ids of each table are among those of an example."""
    return list(itertools.starmap(slice, itertools.pairwise(np.cumsum([0, *data.bag_lengths]))))


def first_lookups(split: Split, columns: slice, rows: int) -> Int64[np.ndarray, " R"]:
    """Of each row the number of its first lookup; of rows without one, a number above all others.

    Args:
        split: its examples may be memory maps.
        columns: of the table among the ids of an example.
        rows: R of the table.
    """
    first = np.full(rows, np.iinfo(np.int64).max)
    lookups = 0
    for day in split.days:
        for start in range(0, len(day), _EXAMPLES_PER_BLOCK):
            ids = np.asarray(day.ids[start : start + _EXAMPLES_PER_BLOCK])[:, columns].ravel()
            ids = ids[ids != ABSENT]
            np.minimum.at(first, ids, np.arange(lookups, lookups + len(ids)))
            lookups += len(ids)
    return first


def places(
    occurrences: Int64[np.ndarray, " R"],
    first: Int64[np.ndarray, " R"],
    rng: np.random.Generator,
) -> dict[str, Int32[np.ndarray, " R"]]:
    """By order, where each row lies.

    Rows that an order doesn't tell apart, such as those that occur once, lie as by chance.

    Args:
        occurrences: how often each row is looked up.
        first: from `first_lookups`.
        rng: of the random order.
    """
    shuffled = rng.permutation(len(first)).astype(np.int32)
    rows = {
        "frequency": shuffled[np.argsort(-occurrences[shuffled], kind="stable")],
        "first_seen": shuffled[np.argsort(first[shuffled], kind="stable")],
        "random": shuffled,
    }
    found = {}
    for name in ORDERS:
        found[name] = np.empty(len(first), np.int32)
        found[name][rows[name]] = np.arange(len(first), dtype=np.int32)
    return found


def units(rows: Integer[np.ndarray, " N"], row_bytes: int, unit: int) -> Int64[np.ndarray, " K"]:
    """The cache lines or pages in which rows lie, row by row; a row may lie in several.

    Args:
        rows: of an array that begins with a line or page.
        row_bytes: of each.
        unit: bytes of a line or page.
    """
    begin = rows.astype(np.int64) * row_bytes
    first, last = begin // unit, (begin + row_bytes - 1) // unit
    counts = last - first + 1
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first, counts) + within


def touched(batches: Batches, row_bytes: int, unit: int) -> float:
    """Distinct lines or pages that a batch touches of all tables, on average.

    Args:
        batches: on which the mean is taken.
        row_bytes: of all tables.
        unit: bytes of a line or page.
    """
    counts = [len(np.unique(units(np.unique(x), row_bytes, unit))) for b in batches for x in b]
    return sum(counts) / len(batches)


def hit_rate(
    batches: Batches, table_rows: Sequence[int], row_bytes: int, unit: int, capacity: int
) -> float:
    """The share of accesses that an LRU cache of lines or pages serves, empty at first.

    Args:
        batches: one after the other, as are the tables in each.
        table_rows: of each table.
        row_bytes: of all tables.
        unit: bytes of a line or page.
        capacity: of the cache, in bytes.
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
    """Lookups of the busiest shard over the mean, where row r lies on shard r mod `shards`.

    Args:
        batches: whose ratios are averaged.
        shards: over which every table is dealt out.
        distinct: whether a row counts once in a batch, or as often as it is looked up.
        turned: whether each table begins one shard after the one before.
    """
    ratios = []
    for batch in batches:
        loads = np.zeros(shards)
        for number, rows in enumerate(batch):
            looked_up = np.unique(rows) if distinct else rows
            loads += np.bincount((looked_up + number * turned) % shards, minlength=shards)
        ratios.append(loads.max() / loads.mean())
    return float(np.mean(ratios))
