"""Compiled programs of few sizes, which encode histories and rank all items for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32

from dlrm_jax.attention.block_pairs import BLOCK
from dlrm_jax.attention.jagged import sequences_of
from dlrm_jax.precision import jit
from dlrm_jax.sequential.model import NextItem

_PACKED = 1024
"""Tokens of the largest pack, unless a single history may be longer."""

MOST_ITEMS = 1024
"""Most items that can be asked for."""

_HISTORIES = (1, 8, 64)
_FIRSTS = (128, MOST_ITEMS)
_SCORES = 1 << 26
"""Scores that are in memory at a time, unless a single history has more."""

_EXCLUDED = 1024  # scores that a call leaves out


class Pack(NamedTuple):
    """Histories one behind the other, without filling.

    Attributes:
        items: number of the item of each token, [n].
        times: time of each, in seconds from the question's, [n]; zeros where nothing reads it.
        next_times: time of the token that follows, [n].
        lengths: number of tokens of each history, [b].
    """

    items: Int32[np.ndarray, " n"]
    times: Int32[np.ndarray, " n"]
    next_times: Int32[np.ndarray, " n"]
    lengths: Int32[np.ndarray, " b"]


class RankingProgram:
    """The programs of a trained model, on one device.

    Args:
        model: trained model.
        table: vectors of the items, [V, d].
        longest: most tokens of a history.
    """

    def __init__(self, model: NextItem, table: Float[Array, "V d"], longest: int):
        graph, self._state = nnx.split(model)
        self._table, self._vectors = table, model.items(table)
        self.token_sizes = _doubled(BLOCK, max(longest, _PACKED))
        fitting = [x for x in _HISTORIES if x * len(table) <= _SCORES]
        self.history_sizes = fitting or [1]
        self.first_sizes = sorted({min(x, len(table)) for x in _FIRSTS})

        def encode(
            state: Any, table: Array, items: Array, times: Array, following: Array, lengths: Array
        ) -> Float[Array, "S d"]:
            vectors = jnp.where(items[:, None] >= 0, table[jnp.maximum(items, 0)], 0)
            sequences = sequences_of(lengths, len(items), times, following)
            found = nnx.merge(graph, state).histories(vectors, sequences)
            return found[jnp.maximum(jnp.cumsum(lengths) - 1, 0)]

        def scores(histories: Array, vectors: Array) -> Float[Array, "s V"]:
            return jnp.matmul(histories, vectors.T, precision=jax.lax.Precision.HIGHEST)

        def exclude(scores: Array, rows: Array, items: Array) -> Float[Array, "s V"]:
            return scores.at[rows, items].set(-jnp.inf, mode="drop")

        self._encode, self._scores = jit(encode), jax.jit(scores)
        self._exclude = jax.jit(exclude, donate_argnums=0)
        self._first = jax.jit(jax.lax.top_k, static_argnums=1)

    def warm_up(self) -> None:
        """Compiles the program of each size."""
        zeros = np.zeros(0, np.int32)
        for size in self.token_sizes:
            self._encoded(Pack(zeros, zeros, zeros, zeros), size)
        seen = np.zeros((1, len(self._vectors)), bool)
        seen[0, 0] = True
        for count in self.history_sizes:
            histories = np.zeros((count, self._vectors.shape[1]), np.float32)
            for first in self.first_sizes:
                self.first(histories, first, np.repeat(seen, count, axis=0))

    def encode(self, pack: Pack) -> Float32[np.ndarray, "b d"]:
        """The vector of each history.

        Args:
            pack: at most as many histories and tokens as the largest sizes.
        """
        size = _least(self.token_sizes, len(pack.items))
        return self._encoded(pack, size)[: len(pack.lengths)]

    def first(
        self,
        histories: Float32[np.ndarray, "b d"],
        count: int,
        excluded: Bool[np.ndarray, "b V"] | None = None,
    ) -> tuple[Int32[np.ndarray, "b k"], Float32[np.ndarray, "b k"]]:
        """The items with the largest products with each vector, the best one first.

        Of equal products, the item with the lowest number comes first.

        Args:
            histories: vectors, at most as many as the largest size.
            count: number of items, at most the largest size.
            excluded: whether an item is left out; None for none.

        Returns:
            Numbers of the items, and their products; those of items that are left out are -∞.
        """
        size = _least(self.history_sizes, len(histories))
        filled = np.pad(histories, [(0, size - len(histories)), (0, 0)])
        found = self._scores(filled, self._vectors)
        if excluded is not None:
            rows, items = np.nonzero(excluded)
            for start in range(0, len(rows), _EXCLUDED):
                part = slice(start, start + _EXCLUDED)
                found = self._exclude(
                    found,
                    _filled(rows[part], _EXCLUDED, size),  # out of range, where nothing is set
                    _filled(items[part], _EXCLUDED, 0),
                )
        products, numbers = self._first(found, _least(self.first_sizes, count))
        shape = np.s_[: len(histories), :count]
        return np.asarray(numbers)[shape], np.asarray(products)[shape]

    def _encoded(self, pack: Pack, size: int) -> Float32[np.ndarray, "S d"]:
        lengths = _filled(pack.lengths, self.history_sizes[-1], 0)
        items = _filled(pack.items, size, -1)
        times, following = (_filled(x, size, 0) for x in (pack.times, pack.next_times))
        return np.asarray(self._encode(self._state, self._table, items, times, following, lengths))


def _doubled(least: int, most: int) -> list[int]:
    """Sizes, each twice the one before, up to one that has room for the most."""
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return sizes


def _least(sizes: list[int], count: int) -> int:
    """The smallest size that has room for so many."""
    return next(size for size in sizes if size >= count)


def _filled(x: np.ndarray, size: int, value: int) -> Int32[np.ndarray, " n"]:
    return np.pad(x.astype(np.int32), (0, size - len(x)), constant_values=value)
