"""Times lookups and updates of batches under several orders of rows, in turn."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from dlrm_jax.embedding import EmbeddingCollection, EmbeddingState
from dlrm_jax.mesh import put_batch
from experiments.benchmarks.timing import in_turn, mean_seconds, ratio_quartiles


class Work:
    """A state, with the same consecutive batches to look up and to update, by order of rows."""

    def __init__(
        self,
        collection: EmbeddingCollection,
        ids: Mapping[str, Int32[np.ndarray, "N C"]],
        batch_size: int,
        seed: int,
    ):
        self._batches = {
            name: [
                put_batch(collection.mesh, own[first : first + batch_size])
                for first in range(0, len(own) - batch_size + 1, batch_size)
            ]
            for name, own in ids.items()
        }
        self._state = collection.init(seed)
        rng = np.random.default_rng(seed)
        self._cotangents = {
            lookup.name: rng.normal(
                0, 1e-4, (batch_size, collection.tables[lookup.table].dim)
            ).astype(np.float32)
            for lookup in collection.lookups
        }
        self._cotangents = put_batch(collection.mesh, self._cotangents)

        @jax.jit
        def lookup(state: EmbeddingState, ids: Int[Array, "B C"]) -> dict[str, Array]:
            return collection.lookup(state, ids)[0]

        @functools.partial(jax.jit, donate_argnames="state")
        def update(
            state: EmbeddingState,
            ids: Int[Array, "B C"],
            cotangents: Mapping[str, Float32[Array, "B d"]],
        ) -> EmbeddingState:
            _, context = collection.lookup(state, ids)  # its unused vectors aren't read
            return collection.update(state, context, cotangents, 0)

        self._lookup, self._update = lookup, update

    def lookups(self, order: str) -> float:
        """The mean seconds of looking up a batch."""
        return self._mean_seconds(order, self._look_up)

    def updates(self, order: str) -> float:
        """The mean seconds of updating by a batch."""
        return self._mean_seconds(order, self._go_on)

    def _mean_seconds(self, order: str, step: Callable[[jax.Array], Any]) -> float:
        return mean_seconds(map(step, self._batches[order]), len(self._batches[order]))

    def _look_up(self, ids: jax.Array) -> None:
        jax.block_until_ready(self._lookup(self._state, ids))

    def _go_on(self, ids: jax.Array) -> None:
        self._state = jax.block_until_ready(self._update(self._state, ids, self._cotangents))


def compare(work: Work, orders: Sequence[str], rounds: int) -> dict[str, Any]:
    """Times lookups and updates under each order, in turn; ratios compare with the last one.

    Returns:
        By ``"lookup"`` and ``"update"``, and by order: ``ms``, the median of the rounds;
        ``fastest_ms``; and ``ratio``, the last order's time over this one's in the same round:
        the first quartile, the median and the third quartile.
    """
    results: dict[str, Any] = {}
    for name, run in (("lookup", work.lookups), ("update", work.updates)):
        runs = {order: functools.partial(run, order) for order in orders}
        in_turn(runs, 1)  # compiles, and allocates the pages of tables and state
        times = in_turn(runs, rounds)
        last = times[orders[-1]]
        results[name] = {
            order: {
                "ms": 1e3 * statistics.median(seconds),
                "fastest_ms": 1e3 * min(seconds),
                "ratio": ratio_quartiles(last, seconds),
            }
            for order, seconds in times.items()
        }
    return results
