"""Lookups of a request whose samples share some bags: these are read and pooled once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import Float32, Int

from dlrm_jax.artifact.row_pooling import RowPooling, aligned


class SharedPooling:
    """The lookups of a model, some of which give all samples the same vectors.

    Args:
        pooling: all lookups.
        shared: names of those whose bags are the same in all samples; at least one.
    """

    def __init__(self, pooling: RowPooling, shared: Collection[str]):
        others = [x.name for x in pooling.lookups if x.name not in shared]
        self._width = pooling.width
        self._once, self._each = pooling.only(shared), pooling.only(others) if others else None
        self._columns = [pooling.columns[x.name] for x in self._once.lookups]

    def __call__(
        self, ids: Int[np.ndarray, "n C"], weights: Float32[np.ndarray, "n C"] | None = None
    ) -> Float32[np.ndarray, "n W"]:
        """See `RowPooling`; the ids of shared lookups are read of the first sample alone."""
        out = aligned((len(ids), self._width))
        if self._each:
            self._each(ids, weights, out)
        first = self._once(ids[:1], None if weights is None else weights[:1])
        for columns in self._columns:
            out[:, columns] = first[:, columns]
        return out
