"""Random items with attributes, and the search in NumPy that says what an index must find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.retrieval.index.attributes import Attribute, Attributes
from dlrm_jax.retrieval.index.item_index import Found, ItemIndex

LANGUAGES = ("en", "de", "fr")
FILTERS: tuple[Any, ...] = (
    None,
    {"language": "en"},
    {"topics": [101, 103]},
    {"language": ["de", "fr"], "topics": 104},
    {"language": "it"},
)


def draw_vectors(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Vectors some of which are equal, so that there are ties, and one of which is 0."""
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    vectors[rng.integers(0, count, count // 3)] = vectors[0]
    vectors[-1] = 0
    return vectors


def draw_attributes(rng: np.random.Generator, count: int) -> Attributes:
    """A language, which some items lack, and up to two numbered topics."""
    ids = rng.integers(-1, len(LANGUAGES), (count, 3)).astype(np.int32)
    ids[:, 1:] = rng.integers(-1, 5, (count, 2))
    languages = pl.DataFrame(
        {"value": LANGUAGES, "id": range(3)}, {"value": pl.String, "id": pl.Int32}
    )
    topics = pl.DataFrame(
        {"value": range(100, 105), "id": range(5)}, {"value": pl.Int64, "id": pl.Int32}
    )
    return Attributes(
        ids, (Attribute("language", (0, 1), languages), Attribute("topics", (1, 3), topics))
    )


def passes(attributes: Attributes, item: int, wanted: Mapping[str, Any] | None) -> bool:
    """Whether an item has what is wanted."""
    for name, values in (wanted or {}).items():
        own = attributes.ids[item]
        has = {LANGUAGES[own[0]]} if name == "language" and own[0] >= 0 else set()
        if name == "topics":
            has = {100 + x for x in own[1:] if x >= 0}
        if not has & set(values if isinstance(values, list) else [values]):
            return False
    return True


def quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers from -127 to 127, and a scale for each row."""
    scales = (np.abs(rows).max(axis=1) / np.float32(127)).astype(np.float32)
    scales[scales == 0] = 1
    return np.rint(rows / scales[:, None]).astype(np.int64), scales


def expected(
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    attributes: Attributes,
    filters: Sequence[Mapping[str, Any] | None],
) -> tuple[np.ndarray, np.ndarray]:
    """The best items and their scores, one query after the other."""
    (rows, scales), (asked, of_queries) = quantized(vectors), quantized(queries)
    found = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for i, query in enumerate(asked):
        products = (rows @ query).astype(np.float32) * scales
        best = sorted(range(len(rows)), key=lambda item: (-products[item], item))
        best = [item for item in best if passes(attributes, item, filters[i])][:k]
        found[i, : len(best)] = best
        scores[i, : len(best)] = products[best] * of_queries[i]
    return found, scores


def search_both(
    seed: int, count: int, dim: int, k: int, cells: int, filters: Sequence[Any], **options: Any
) -> tuple[Found, tuple[np.ndarray, np.ndarray]]:
    """What an index of random items in random cells finds, and what it must find."""
    rng = np.random.default_rng(seed)
    vectors, attributes = draw_vectors(rng, count, dim), draw_attributes(rng, count)
    of_items = rng.integers(0, cells, count).astype(np.int32)
    directions = rng.normal(size=(cells, dim)).astype(np.float32)
    index = ItemIndex.in_cells(vectors, attributes, directions, of_items, probes=1)
    queries = rng.normal(size=(len(filters), dim)).astype(np.float32)
    found = index.search(queries, k, filters, probes=cells, **options)
    return found, expected(vectors, queries, k, attributes, filters)
