"""Checks that the ids of a data set fit the tables that they are to read."""

from collections.abc import Iterator, Sequence

import numpy as np

from dlrm_jax.data.arrays import ABSENT, Split
from dlrm_jax.errors import UserError

_ROWS_PER_BLOCK = 1 << 16


def check_ids(
    split: Split, table_rows: Sequence[int], bag_lengths: Sequence[int], name: str
) -> None:
    """Checks that every id is `ABSENT` or a row of its table.

    An id out of range wouldn't fail on an accelerator, it would read or update another row.

    Args:
        split: Ids of shape [N, sum(bag_lengths)].
        table_rows: Rows of each categorical feature's table.
        bag_lengths: Places of each categorical feature among the ids of an example.
        name: What to call the split in the message, such as "train".

    Raises:
        UserError: Names the first bad id: row, feature, value.
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
    """The ids, block by block, each with its first row."""
    first = 0
    for day in split.days:
        for start in range(0, len(day), _ROWS_PER_BLOCK):
            block = day.arrays["ids"][start : start + _ROWS_PER_BLOCK]
            yield first + start, np.asarray(block)
        first += len(day)
