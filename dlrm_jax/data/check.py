"""Checks that the ids of a data set fit the tables."""

from collections.abc import Iterator, Sequence

import numpy as np

from dlrm_jax.data.arrays import ABSENT, Split
from dlrm_jax.errors import UserError

_ROWS_PER_BLOCK = 1 << 16


def check_ids(
    split: Split, table_rows: Sequence[int], bag_lengths: Sequence[int], name: str
) -> None:
    """Checks that every id is `ABSENT` or a row of its table.

    On an accelerator an id out of range doesn't fail: it reads or updates another row.

    Args:
        split: the examples, with ids of shape [N, sum(bag_lengths)].
        table_rows: rows of each categorical feature's table.
        bag_lengths: ids per example of each categorical feature.
        name: name of the split in messages, such as "train".

    Raises:
        UserError: an id is out of range; the message names the first one's row, feature and value.
    """
    if split.ids_per_example != sum(bag_lengths) or len(table_rows) != len(bag_lengths):
        raise UserError(
            f"{name}: {len(table_rows)} tables with bags of {sum(bag_lengths)} ids in all don't "
            f"describe examples with {split.ids_per_example} ids each."
        )
    feature_of_column = np.repeat(np.arange(len(table_rows)), bag_lengths)
    limits = np.asarray(table_rows, np.int64)[feature_of_column]
    for first, block in _blocks(split):
        if (block.min(axis=0) >= ABSENT).all() and (block.max(axis=0) < limits).all():
            continue
        row, column = np.argwhere((block < ABSENT) | (block >= limits))[0]
        feature = feature_of_column[column]
        raise UserError(
            f"{name}, row {first + row} (from 0), categorical feature {feature} (from 0): expected "
            f"an id from 0 to {limits[column] - 1}, or {ABSENT} for an absent one, got "
            f"{block[row, column]}. Correct the ids, or give this feature a table with more rows."
        )


def _blocks(split: Split) -> Iterator[tuple[int, np.ndarray]]:
    """The ids, block by block, each with the number of its first row."""
    first = 0
    for day in split.days:
        for start in range(0, len(day), _ROWS_PER_BLOCK):
            block = day.arrays["ids"][start : start + _ROWS_PER_BLOCK]
            yield first + start, np.asarray(block)
        first += len(day)
