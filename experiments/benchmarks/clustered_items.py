"""Vectors as two towers make them: items in clusters of all sizes, users between some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32

from dlrm_jax.data.generated.zipf import bounded_zipf
from dlrm_jax.retrieval.index.attributes import Attribute, Attributes

_LANGUAGES = {"en": 0.55, "de": 0.25, "fr": 0.15, "it": 0.05}
_CATEGORIES = 50
FILTER = {"language": "en", "category": [3, 7, 11, 19, 23]}
"""A filter that about one item in twenty passes."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Drawn items and users.

    Attributes:
        items: vectors of length 1.
        users: vectors of length 1.
        attributes: language and category of the items; clusters have categories of their own.
    """

    items: Float32[np.ndarray, "I d"]
    users: Float32[np.ndarray, "U d"]
    attributes: Attributes

    def passing(self) -> Bool[np.ndarray, " I"]:
        """Which items pass `FILTER`."""
        return self.attributes.passing(self.attributes.filter(FILTER))


def draw(items: int, users: int, dim: int, seed: int) -> Drawn:
    """Draws clusters, of which a few are large, then items, and users near two clusters each.

    The directions of the space count less and less, as those of trained towers do.
    """
    rng = np.random.default_rng(seed)
    clusters = max(1, items // 200)
    spectrum = (1 + np.arange(dim)) ** -0.4
    centers = _unit(rng.normal(size=(clusters, dim)) * spectrum)
    own = bounded_zipf(rng, clusters, 0.8, (items,)).astype(np.int64)
    vectors = np.empty((items, dim), np.float32)
    for first in range(0, items, 1 << 16):
        part = slice(first, first + (1 << 16))
        noise = _unit(rng.normal(size=(len(own[part]), dim)) * spectrum)
        vectors[part] = _unit(centers[own[part]] + 0.8 * noise)
    liked = own[rng.integers(0, items, (users, 2))]
    share = rng.uniform(0.5, 1, (users, 1))
    between = share * centers[liked[:, 0]] + (1 - share) * centers[liked[:, 1]]
    asked = _unit(between + 0.6 * _unit(rng.normal(size=(users, dim)) * spectrum))
    language = rng.choice(len(_LANGUAGES), items, p=[*_LANGUAGES.values()])
    category = np.where(rng.random(items) < 0.8, own % _CATEGORIES, rng.integers(0, 50, items))
    ids = np.stack([language, category], axis=1).astype(np.int32)
    attributes = (
        Attribute("language", (0, 1), _values(_LANGUAGES)),
        Attribute("category", (1, 2), _values(range(_CATEGORIES))),
    )
    return Drawn(vectors, asked.astype(np.float32), Attributes(ids, attributes))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _values(values: Iterable[Any]) -> pl.DataFrame:
    return pl.DataFrame({"value": list(values)}).with_columns(
        pl.int_range(pl.len(), dtype=pl.Int32).alias("id")
    )
