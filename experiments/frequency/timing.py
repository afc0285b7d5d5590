"""Times lookups and updates of batches under several orders of rows, in turn."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from dlrm_jax.embedding import EmbeddingCollection, EmbeddingState
from dlrm_jax.mesh import put_batch
from experiments.benchmarks.timing import in_turn, mean_seconds, ratio_quartiles
from experiments.frequency.row_order import ORDERS


def compare(
    collection: EmbeddingCollection,
    ids: Mapping[str, Int32[np.ndarray, "N C"]],
    batch_size: int,
    seed: int,
    rounds: int,
) -> dict[str, Any]:
    """Times lookups and updates of the same consecutive batches under each order, in turn.

    Returns:
        By ``"lookup"`` and ``"update"``, and by order: ``ms``, the median of the rounds;
        ``fastest_ms``; and ``ratio``, the last order's time over this one's in the same round:
        the first quartile, the median and the third quartile.
    """
    batches = {
        order: [
            put_batch(collection.mesh, own[first : first + batch_size])
            for first in range(0, len(own) - batch_size + 1, batch_size)
        ]
        for order, own in ids.items()
    }
    state, rng = collection.init(seed), np.random.default_rng(seed)
    shapes = {x.name: (batch_size, collection.tables[x.table].dim) for x in collection.lookups}
    drawn = {name: rng.normal(0, 1e-4, shape) for name, shape in shapes.items()}
    cotangents = put_batch(collection.mesh, {x: y.astype(np.float32) for x, y in drawn.items()})

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

    def look_up(ids: jax.Array) -> None:
        jax.block_until_ready(lookup(state, ids))

    def go_on(ids: jax.Array) -> None:
        nonlocal state
        state = jax.block_until_ready(update(state, ids, cotangents))

    def seconds(step: Callable[[jax.Array], None], order: str) -> float:
        return mean_seconds(map(step, batches[order]), len(batches[order]))

    results: dict[str, Any] = {}
    for name, step in (("lookup", look_up), ("update", go_on)):
        runs = {order: functools.partial(seconds, step, order) for order in ORDERS}
        in_turn(runs, 1)  # compiles, and allocates the pages of tables and state
        times = in_turn(runs, rounds)
        results[name] = {
            order: {
                "ms": 1e3 * statistics.median(own),
                "fastest_ms": 1e3 * min(own),
                "ratio": ratio_quartiles(times[ORDERS[-1]], own),
            }
            for order, own in times.items()
        }
    return results
