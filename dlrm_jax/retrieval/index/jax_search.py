"""The search of an index in plain JAX, for accelerators and where the kernel isn't built.

All items are multiplied with all queries, block by block; cells and filters only say which scores
count. So cells don't make it faster, and Bloom filters aren't read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int8, Int32, Int64

from dlrm_jax.retrieval.index.attributes import Clause
from dlrm_jax.retrieval.index.vectors import GAP, ItemVectors
from dlrm_jax.signals import check

if TYPE_CHECKING:
    from dlrm_jax.retrieval.index.item_index import ItemIndex

_ROWS = 1 << 16  # of a block
_SCORES = 1 << 24  # in memory at a time


class JaxSearch:
    """Items on the default device, in the order of their numbers; see `native_search.find`.

    Args:
        vectors: vectors of the items.
        starts: first block of each cell, and the end of all.
    """

    def __init__(self, vectors: ItemVectors, starts: Int64[np.ndarray, " S"]):
        there = np.flatnonzero(vectors.numbers != GAP)
        places = there[np.argsort(vectors.numbers[there], kind="stable")]
        self._items, self._places = len(places), places
        size = min(_ROWS, self._items)
        padded = np.pad(places, (0, -self._items % size), mode="edge")
        of_places = np.repeat(np.arange(len(starts) - 1), np.diff(starts) * 32).astype(np.int32)
        self._cells = len(starts) - 1
        self._blocks = jax.device_put(
            (
                vectors.rows()[padded].reshape(-1, size, vectors.blocks.shape[1] * 4),
                vectors.scales[padded].reshape(-1, size),
                of_places[padded].reshape(-1, size),
                np.arange(len(padded), dtype=np.int32).reshape(-1, size),
            )
        )

    def __call__(
        self,
        index: ItemIndex,
        queries: Int8[np.ndarray, "n w"],
        best: int,
        cells: Int32[np.ndarray, "n p"] | None,
        chosen: Int32[np.ndarray, " n"] | None,
        filters: Sequence[Sequence[Clause]],
        threads: int | None,
    ) -> tuple[Int64[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
        """See `native_search.find`; threads are XLA's."""
        size, count = self._blocks[0].shape[:2]
        read = np.ones((len(queries), self._cells), bool)
        if cells is not None:
            read[:] = False
            np.put_along_axis(read, cells, True, axis=1)
        # The last filter lets all items pass.
        passing = np.ones((len(filters) + 1, size * count), bool)
        passing[:, self._items :] = False
        for number, clauses in enumerate(filters):
            assert index.attributes is not None
            passing[number, : self._items] = index.attributes.passing(clauses)[self._places]
        passing = jnp.asarray(passing.reshape(-1, size, count).transpose(1, 0, 2))
        own = np.full(len(queries), -1, np.int32) if chosen is None else chosen
        step = max(1, _SCORES // count)
        found, scores = [], []
        for first in range(0, len(queries), step):
            check()
            part = slice(first, first + step)
            # As many as a power of two, so that few programs are compiled.
            asked = len(own[part])
            fill = (0, (1 << (asked - 1).bit_length()) - asked)
            rows = [np.pad(x[part], [fill, (0, 0)]) for x in (queries, read)]
            answer = _best(self._blocks, passing, *rows, np.pad(own[part], fill), best)
            found.append(np.asarray(answer[0], np.int64)[:asked])
            scores.append(np.asarray(answer[1])[:asked])
        none = np.empty((0, best))
        return (
            np.concatenate([none.astype(np.int64), *found]),
            np.concatenate([none.astype(np.float32), *scores]),
        )


@functools.partial(jax.jit, static_argnames="best")
def _best(
    blocks: tuple[Array, Array, Array, Array],
    passing: Bool[Array, "b F m"],
    queries: Int[Array, "n w"],
    read: Bool[Array, "n C"],
    chosen: Int[Array, " n"],
    best: int,
) -> tuple[Int[Array, "n best"], Float[Array, "n best"]]:
    def of_block(carried: tuple[Array, Array], block: tuple[Array, ...]) -> tuple[tuple, None]:
        (rows, scales, cells, numbers), passes = block[:4], block[4]
        products = jax.lax.dot_general(
            queries, rows, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
        )
        scores = products.astype(jnp.float32) * scales
        scores = jnp.where(passes[chosen] & read[:, cells], scores, -jnp.inf)
        # Those of lower numbers come first, so that they win ties.
        scores = jnp.concatenate([carried[0], scores], axis=1)
        own = jnp.broadcast_to(numbers, (len(queries), len(numbers)))
        numbers = jnp.concatenate([carried[1], own], axis=1)
        scores, at = jax.lax.top_k(scores, best)
        return (scores, jnp.take_along_axis(numbers, at, axis=1)), None

    count = queries.shape[0]
    nothing = jnp.full((count, best), -jnp.inf), jnp.full((count, best), -1, jnp.int32)
    (scores, numbers), _ = jax.lax.scan(of_block, nothing, (*blocks, passing))
    return jnp.where(scores == -jnp.inf, -1, numbers), scores
