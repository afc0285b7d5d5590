"""From the raw values of a categorical feature to rows of its table."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, UInt32

from dlrm_jax.errors import UserError

UNSEEN = 0
"""The id of values that aren't in the vocabulary."""
MISSING = 1
"""The id of empty fields."""
FIRST_VALUE = 2
"""The id of the most frequent value."""


@dataclass(frozen=True)
class Vocabulary:
    """The values of one feature that have rows of their own.

    Attributes:
        values: Raw values in ascending order.
        ids: The row of each value, from `FIRST_VALUE` on by descending frequency.
    """

    values: UInt32[np.ndarray, " V"]
    ids: Int32[np.ndarray, " V"]

    @classmethod
    def learn(cls, values: UInt32[np.ndarray, " N"], min_count: int = 1) -> "Vocabulary":
        """Builds a vocabulary from the values of the training part, missing ones left out.

        Frequent values get small ids, equally frequent ones are ordered by value.

        Args:
            values: Raw values, as often as they occur.
            min_count: Rarer values share the row `UNSEEN`.

        Raises:
            UserError: If `min_count` is less than 1.
        """
        if min_count < 1:
            raise UserError(f"min_count must be at least 1 (1 keeps every value), got {min_count}.")
        distinct, counts = np.unique(values, return_counts=True)
        kept = counts >= min_count
        distinct, counts = distinct[kept], counts[kept]
        ids = np.empty(len(distinct), np.int32)
        by_frequency = np.argsort(-counts, kind="stable")
        ids[by_frequency] = np.arange(FIRST_VALUE, FIRST_VALUE + len(distinct), dtype=np.int32)
        return cls(distinct, ids)

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return FIRST_VALUE + len(self.values)

    def encode(
        self, values: UInt32[np.ndarray, " N"], missing: Bool[np.ndarray, " N"]
    ) -> Int32[np.ndarray, " N"]:
        """Maps raw values to ids; where `missing` is set the value is ignored."""
        if len(self.values):
            place = np.minimum(np.searchsorted(self.values, values), len(self.values) - 1)
            ids = np.where(self.values[place] == values, self.ids[place], np.int32(UNSEEN))
        else:
            ids = np.full(len(values), UNSEEN, np.int32)
        ids[missing] = MISSING
        return ids
