"""Lookups in stored tables: ids in, the vectors that the dense model reads out.

The numbers are those of `dlrm_jax.embedding`: a bag is summed in float32, from its first id to its
last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from dlrm_jax.artifact.manifest import LookupNote
from dlrm_jax.artifact.tables import StoredTable
from dlrm_jax.embedding.id_maps import ID_MAPS

_Vectors = dict[str, Float32[np.ndarray, "B *_"]]


def look_up(
    lookups: Sequence[LookupNote],
    tables: Mapping[str, StoredTable],
    ids: Int[np.ndarray, "B C"],
    id_weights: Float32[np.ndarray, "B C"] | None = None,
) -> _Vectors:
    """The vectors of each lookup: [B, dim], or [B, L, dim] without pooling.

    Args:
        lookups: lookups.
        tables: tables by name.
        ids: ids of all features side by side; negative is absent. The vectors of an id that its
            table doesn't have are NaN.
        id_weights: weights of the ids; None if all are 1.
    """
    found = {}
    for note in lookups:
        own = slice(*note.columns)
        weights = None if id_weights is None else id_weights[:, own]
        bags = _Bags(ids[:, own], weights, tables[note.table], _id_map(note))
        found[note.name] = bags.sequence() if note.pooling == "none" else bags.pooled(note.pooling)
    return found


def _id_map(note: LookupNote) -> Callable[[Any], Any] | None:
    return next((ID_MAPS[name](number) for name, number in note.id_map.items()), None)


@dataclasses.dataclass(frozen=True)
class _Bags:
    """The bags of a feature, and the table that they read."""

    ids: Int[np.ndarray, "B L"]
    weights: Float32[np.ndarray, "B L"] | None
    table: StoredTable
    id_map: Callable[[Any], Any] | None

    def pooled(self, pooling: str) -> Float32[np.ndarray, "B dim"]:
        """Σ w·v over each bag, or for the mean that over Σ w."""
        total = self._nth(0)
        for i in range(1, self.ids.shape[1]):
            total += self._nth(i)
        if pooling == "mean":
            present = (self.ids >= 0).astype(np.float32)
            weights = present if self.weights is None else np.where(present, self.weights, 0)
            sums = weights.sum(axis=1, dtype=np.float32)
            total /= np.where(sums == 0, np.float32(np.inf), sums)[:, None]
        return total

    def sequence(self) -> Float32[np.ndarray, "B L dim"]:
        """The vectors w·v, with zeros for absent ids."""
        return np.stack([self._nth(i) for i in range(self.ids.shape[1])], axis=1)

    def _nth(self, i: int) -> Float32[np.ndarray, "B dim"]:
        """The vectors of the ids in a column of the bags."""
        ids = self.ids[:, i]
        absent = ids < 0
        rows = np.where(absent, 0, ids)
        rows = rows if self.id_map is None else self.id_map(rows)
        unknown = rows >= len(self.table)
        vectors = self.table.rows(np.where(unknown, 0, rows))
        if self.weights is not None:
            vectors *= self.weights[:, i, None]
        vectors[absent] = 0
        vectors[unknown] = np.nan
        return vectors
