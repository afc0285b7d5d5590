"""Maps raw rows to the ids of a stream's values quickly: each value is hashed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.preprocessing.raw_ids import ABSENT_ID, id_of
from dlrm_jax.inference.row_encoder import Columns, RowEncoder


class RawIdRows(RowEncoder):
    """Gives raw rows the ids and dense features that a `RawIdEncoder` gives."""

    def _all_ids(
        self, columns: Columns, count: int, known_only: bool
    ) -> Int64[np.ndarray, "N C"] | None:
        """None if a value is of a type that whole columns decide, or has the id of none."""
        schema = self._schema
        ids = np.full((count, sum(schema.lengths)), ABSENT_ID, np.uint64)
        start = 0
        for name, length in zip(schema.categorical, schema.lengths, strict=True):
            column = columns[name]
            for row, value in enumerate(column):
                bag = _bag(value, length) if name in schema.bag_lengths else [value]
                if bag is None:
                    return None
                place = row if len(column) == count else slice(None)
                for i, found in enumerate(map(id_of, bag), start):
                    if found is None or found == ABSENT_ID:
                        return None
                    ids[place, i] = found
            start += length
        return ids.view(np.int64)


def _bag(value: Any, length: int) -> Sequence[Any] | None:
    """The first values of a bag; None if it is none."""
    return [] if value is None else value[:length] if type(value) is list else None
