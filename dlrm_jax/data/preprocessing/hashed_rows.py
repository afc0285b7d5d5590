"""Ids hashed to the rows of fixed tables: what a stream does where no ids are dynamic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from jaxtyping import Int32, UInt64

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.preprocessing.raw_ids import RawIds, mixed
from dlrm_jax.data.preprocessing.schema import Schema


def salt_of(owner: str) -> int:
    """The number that is xored to ids of a table before they are mixed.

    Args:
        owner: name of the column that owns the table.
    """
    return xxhash.xxh3_64_intdigest(owner.encode())


def hashed(
    ids: UInt64[np.ndarray, "N C"], salts: UInt64[np.ndarray, " C"], rows: UInt64[np.ndarray, " C"]
) -> Int32[np.ndarray, "N C"]:
    """The rows of ids.

    Args:
        ids: ids.
        salts: salt of each column.
        rows: number of rows of each column's table.
    """
    return (mixed(ids ^ salts) % rows).astype(np.int32)


class HashedRows:
    """Gives each raw id a row of its table by a hash; ids of one row share its vector.

    Columns that share a table in the schema give a value the same row.

    Args:
        schema: meaning of the columns.
        table_rows: rows of each categorical column's table.
    """

    def __init__(self, schema: Schema, table_rows: Sequence[int]):
        salts = [salt_of(schema.categorical[i]) for i in schema.owners]
        self._salts = np.repeat(np.array(salts, np.uint64), schema.lengths)
        self._rows = np.repeat(np.array(table_rows, np.uint64), schema.lengths)

    def __call__(self, raw: RawIds) -> Int32[np.ndarray, "N C"]:
        """The rows of the ids of a batch; `ABSENT` where a bag isn't full."""
        return np.where(raw.present, hashed(raw.ids, self._salts, self._rows), np.int32(ABSENT))
