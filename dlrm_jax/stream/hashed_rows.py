"""Ids hashed to the rows of fixed tables: the encoder of a stream without dynamic ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from jaxtyping import Int32

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.stream.raw_ids import RawIds, mixed


class HashedRows:
    """Gives each raw id a row of its table by a hash; ids of one row share its vector.

    Columns that share a table in the schema give a value the same row.

    Args:
        schema: meaning of the columns.
        table_rows: rows of each categorical column's table.
    """

    def __init__(self, schema: Schema, table_rows: Sequence[int]):
        owners = [schema.categorical[i] for i in schema.owners]
        salts = [xxhash.xxh3_64_intdigest(owner.encode()) for owner in owners]
        self._salts = np.repeat(np.array(salts, np.uint64), schema.lengths)
        self._rows = np.repeat(np.array(table_rows, np.uint64), schema.lengths)

    def __call__(self, raw: RawIds) -> Int32[np.ndarray, "N C"]:
        """The rows of the ids of a batch; `ABSENT` where a bag isn't full."""
        rows = (mixed(raw.ids ^ self._salts) % self._rows).astype(np.int32)
        return np.where(raw.present, rows, np.int32(ABSENT))
