"""Passes over the rows of splits: the rows of positive labels, and the last row of each key."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, Int64

from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.log_order import Log
from dlrm_jax.retrieval.columns import Side

_CHUNK = 1 << 16


def chunks(split: Split) -> Iterator[tuple[int, Examples]]:
    """The examples of a split, some at a time, each with the number of its first row."""
    first = 0
    for day in split.days:
        for start in range(0, len(day), _CHUNK):
            yield first + start, day[start : start + _CHUNK]
        first += len(day)


def is_positive(examples: Examples) -> Bool[np.ndarray, " n"]:
    """Whether the first label is 1."""
    return np.asarray(examples.labels).reshape(len(examples), -1)[:, 0] == 1


def last_rows(log: Log, side: Side, rows: int) -> Int64[np.ndarray, " R"]:
    """The place among the stored rows of each key's last row in a log; -1 for keys without one.

    Args:
        log: rows to look through.
        side: side with the key.
        rows: number R of ids that the key may have.
    """
    last, latest = np.full(rows, -1, np.int64), np.full(rows, -1, np.int64)
    for first, numbers, examples in log.chunks():
        keys = side.keys(side.ids(examples))
        # Some may be earlier in the log than rows of another split, which are stored before.
        there = np.flatnonzero((keys >= 0) & (numbers > latest[np.maximum(keys, 0)]))
        # Of equal keys, the last one stays.
        latest[keys[there]] = numbers[there]
        last[keys[there]] = first + there
    return last


def take(split: Split, rows: Int[np.ndarray, " n"]) -> Iterator[Examples]:
    """The examples of rows, in their order, some at a time."""
    for start in range(0, len(rows), _CHUNK):
        yield split.take(rows[start : start + _CHUNK])
