"""Counts of values that training hadn't: if nearly all are, a column is written otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.special_ids import MISSING, UNSEEN

_MANY = 0.9


class UnseenValues:
    """Counts of the values that got the id of unseen ones.

    Args:
        columns: names of the columns.
        lengths: ids per example of each.
        has_id: whether unseen values have an id of their own; otherwise nothing is counted.
    """

    def __init__(self, columns: Sequence[str], lengths: Sequence[int], has_id: bool):
        self._columns, self._counts = columns, has_id
        self._starts = np.cumsum([0, *lengths[:-1]])
        self._unseen = np.zeros(len(columns), np.int64)
        self._present = np.zeros_like(self._unseen)

    @classmethod
    def of(cls, metadata: Metadata) -> UnseenValues:
        """Those of data; ids of other programs have none for unseen values.

        Args:
            metadata: description of the data that gave the ids.
        """
        is_ours = not Options.from_json(metadata.made_from["options"]).compatible
        return cls(metadata.columns, metadata.bag_lengths, is_ours)

    def add(self, ids: Int[np.ndarray, "N C"]) -> None:
        """Counts further rows."""
        if self._counts and len(ids):
            self._unseen += np.add.reduceat((ids == UNSEEN).sum(0), self._starts)
            present = (ids >= 0) & (ids != MISSING)
            self._present += np.add.reduceat(present.sum(0), self._starts)

    def counts(self) -> dict[str, tuple[int, int]]:
        """The unseen values of each column, and all that aren't missing.

        Both are 0 if unseen values have no id of their own.
        """
        both = zip(self._unseen.tolist(), self._present.tolist(), strict=True)
        return dict(zip(self._columns, both, strict=True))

    def shares(self) -> dict[str, float]:
        """The share of each column's values that training hadn't, or had too rarely.

        Of the values that aren't missing; empty if unseen values have no id of their own.
        """
        return {name: few / many for name, (few, many) in self.counts().items() if many}

    @property
    def share(self) -> float | None:
        """The share of `shares`, over all columns; None without a value."""
        present = int(self._present.sum())
        return int(self._unseen.sum()) / present if present else None

    def warnings(self) -> list[str]:
        """A sentence about each column with hardly a value that training had."""
        return [
            f"{share:.0%} of the values of column {column} weren't in training; compare how the "
            f"column is written in both logs, such as 3, 3.0 and ' 3'"
            for column, share in self.shares().items()
            if share > _MANY
        ]
