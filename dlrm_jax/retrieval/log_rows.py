"""Passes over the rows of splits: the rows of positive labels, and the last row of each key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int64

from dlrm_jax.data.arrays import Examples, Split
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


def last_rows(splits: Sequence[Split], side: Side, rows: int) -> Int64[np.ndarray, " R"]:
    """The last row of each key in the splits, which are numbered on; -1 for keys without one.

    Args:
        splits: splits to look through.
        side: side with the key.
        rows: number R of ids that the key may have.
    """
    last = np.full(rows, -1, np.int64)
    before = 0
    for split in splits:
        for first, examples in chunks(split):
            keys = side.keys(side.ids(examples))
            there = np.flatnonzero(keys >= 0)
            # Of equal keys, the last one stays.
            last[keys[there]] = before + first + there
        before += len(split)
    return last


def take(splits: Sequence[Split], rows: Int[np.ndarray, " n"]) -> Iterator[Examples]:
    """The examples of ascending rows, split after split; `last_rows` numbers them."""
    before = 0
    for split in splits:
        own = rows[(rows >= before) & (rows < before + len(split))]
        for start in range(0, len(own), _CHUNK):
            yield split.take(own[start : start + _CHUNK] - before)
        before += len(split)
