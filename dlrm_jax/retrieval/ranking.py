"""The place of each user's item among all items, and the metrics of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int64

from dlrm_jax.mesh import BATCH
from dlrm_jax.signals import check
from dlrm_jax.training.ranking import Weights, hit_ratio, ndcg

_SCORES = 1 << 26
"""Scores that are in memory at a time, if those of one user on each device aren't more."""


class Ranking:
    """Places among all items, by the products of vectors; users are split over a mesh.

    Args:
        mesh: devices that rank.
        block: users that are ranked at a time; fewer where there are many items.
    """

    def __init__(self, mesh: Mesh, block: int):
        self._mesh, self._block = mesh, block
        per_user, whole = BATCH, PartitionSpec()

        def over_users(function: Callable[..., Array]) -> Callable[..., Array]:
            specs = per_user, whole, per_user, per_user
            return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=per_user))

        self._places = over_users(_places)
        self._first = functools.cache(lambda k: over_users(functools.partial(_first, count=k)))

    def __call__(
        self,
        users: Float32[np.ndarray, "U d"],
        items: Float32[np.ndarray, "I d"],
        chosen: Int[np.ndarray, " U"],
        excluded: Int[np.ndarray, "U E"],
    ) -> Int64[np.ndarray, " U"]:
        """The number of items before the chosen one of each user, ties included.

        Args:
            users: vectors of users.
            items: vectors of items.
            chosen: number of the item that each user has chosen.
            excluded: numbers of items that aren't ranked for a user, unless the chosen one is among
                them; negative for none.
        """
        found = self._over_blocks(self._places, users, items, chosen, excluded)
        return np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64)

    def first(
        self,
        users: Float32[np.ndarray, "U d"],
        items: Float32[np.ndarray, "I d"],
        count: int,
        excluded: Int[np.ndarray, "U E"],
    ) -> Int[np.ndarray, "U k"]:
        """The first items of each user, the best one first.

        Args:
            users: vectors of users.
            items: vectors of items.
            count: number of items for each user, at most I.
            excluded: numbers of items that aren't ranked for a user; negative for none.
        """
        none = np.full(len(users), -1)
        found = self._over_blocks(self._first(count), users, items, none, excluded)
        return np.concatenate([np.empty((0, count), np.int32), *found])

    def _over_blocks(
        self,
        function: Callable[..., Array],
        users: Float32[np.ndarray, "U d"],
        items: Float32[np.ndarray, "I d"],
        *of_users: Int[np.ndarray, "U *_"],
    ) -> Iterator[np.ndarray]:
        """Yields a function's results for one block of users after the other."""
        devices = self._mesh.size
        size = max(1, min(self._block, _SCORES // len(items)) // devices) * devices
        placed_items = jax.device_put(items, NamedSharding(self._mesh, PartitionSpec()))
        split = NamedSharding(self._mesh, BATCH)
        for start in range(0, len(users), size):
            check()
            rows = [x[start : start + size] for x in (users, *of_users)]
            count = len(rows[0])
            # Blocks of one size, so that one program serves all; the last is padded.
            fill = [np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1)) for x in rows]
            own, *others = jax.device_put([fill[0], *(x.astype(np.int32) for x in fill[1:])], split)
            yield np.asarray(function(own, placed_items, *others))[:count]


def _places(
    users: Float[Array, "u d"],
    items: Float[Array, "I d"],
    chosen: Int[Array, " u"],
    excluded: Int[Array, "u E"],
) -> Int[Array, " u"]:
    scores = _scores(users, items, chosen, excluded)
    own = jnp.take_along_axis(scores, chosen[:, None], axis=1)
    # Not "scores >= own": scores that aren't numbers must not look like a perfect ranking.
    return jnp.sum(~(scores < own), axis=1) - 1


def _first(
    users: Float[Array, "u d"],
    items: Float[Array, "I d"],
    chosen: Int[Array, " u"],
    excluded: Int[Array, "u E"],
    count: int,
) -> Int[Array, "u k"]:
    return jax.lax.top_k(_scores(users, items, chosen, excluded), count)[1]


def _scores(
    users: Float[Array, "u d"],
    items: Float[Array, "I d"],
    chosen: Int[Array, " u"],
    excluded: Int[Array, "u E"],
) -> Float[Array, "u I"]:
    """The products; -∞ for what isn't ranked, unless it is chosen."""
    scores = jnp.matmul(users, items.T, precision=jax.lax.Precision.HIGHEST)
    kept = (excluded < 0) | (excluded == chosen[:, None])
    # Out of range, where nothing is set; negative numbers would count from the end.
    left_out = jnp.where(kept, len(items), excluded)
    rows = jnp.arange(len(users))[:, None]
    return scores.at[rows, left_out].set(-jnp.inf, mode="drop")


def ranking_metrics(
    places: Int64[np.ndarray, " U"], ks: Sequence[int], weights: Weights = None
) -> dict[str, float]:
    """``recall@k`` and ``ndcg@k`` for each k, of users who have chosen one item each."""
    recalls = {f"recall@{k}": hit_ratio(places, k, weights) for k in ks}
    return recalls | {f"ndcg@{k}": ndcg(places, k, weights) for k in ks}


def nearest(
    vectors: Float32[np.ndarray, "I d"], chosen: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, "n k"]:
    """The other items whose vectors have the largest products with those of chosen ones, in order.

    Args:
        vectors: vectors of all items, [I, d].
        chosen: items whose nearest ones are wanted, [n].
        count: number of others for each; fewer are given if there are no more.
    """
    scores = vectors[chosen] @ vectors.T
    np.put_along_axis(scores, chosen[:, None], -np.inf, axis=1)
    return np.argsort(-scores, axis=1)[:, : min(count, len(vectors) - 1)]
