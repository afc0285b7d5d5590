"""Cells of similar items: k-means of their directions, by Lloyd's iterations in JAX."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from dlrm_jax.signals import check

_SAMPLE = 256  # vectors of a cell that its centroid is learned from
_ITERATIONS = 10
_SCORES = 1 << 24  # in memory at a time


def default_cells(items: int) -> int:
    """A number of cells for so many items: as many cells as some have items, about."""
    return max(1, min(items, round(2 * items**0.5)))


def find_cells(
    vectors: Float32[np.ndarray, "I d"], count: int, seed: int = 0
) -> tuple[Float32[np.ndarray, "C d"], Int32[np.ndarray, " I"]]:
    """Centroids of length 1, and the cell of each item: the one with the largest product.

    Centroids are learned from at most 256 vectors a cell. A cell that loses all of its vectors
    keeps its centroid.

    Args:
        vectors: vectors of items.
        count: number of cells, at most that of items.
        seed: seed of the sample and of the first centroids.
    """
    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(vectors))[: count * _SAMPLE]
    centroids = _directions(jnp.asarray(vectors[sample[:count]]))
    learned = vectors[np.sort(sample)]
    for _ in range(_ITERATIONS):
        sums = jnp.zeros_like(centroids)
        for chunk in _chunks(learned, count):
            check()
            sums += _sums(chunk, _nearest(chunk, centroids), count)
        is_empty = jnp.all(sums == 0, axis=1, keepdims=True)
        centroids = jnp.where(is_empty, centroids, _directions(sums))
    cells = []
    for chunk in _chunks(vectors, count):
        check()
        cells.append(np.asarray(_nearest(chunk, centroids)))
    return np.asarray(centroids), np.concatenate(cells).astype(np.int32)


def _chunks(vectors: Float32[np.ndarray, "n d"], count: int) -> list[Float32[np.ndarray, "m d"]]:
    size = max(1, _SCORES // count)
    return [vectors[first : first + size] for first in range(0, len(vectors), size)]


@jax.jit
def _nearest(vectors: Float[Array, "n d"], centroids: Float[Array, "C d"]) -> Int[Array, " n"]:
    products = jnp.matmul(vectors, centroids.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(products, axis=1)


@functools.partial(jax.jit, static_argnames="count")
def _sums(
    vectors: Float[Array, "n d"], cells: Int[Array, " n"], count: int
) -> Float[Array, "count d"]:
    return jax.ops.segment_sum(_directions(vectors), cells, count)


def _directions(vectors: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-20)
