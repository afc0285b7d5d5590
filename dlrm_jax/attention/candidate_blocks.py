"""Blocks of candidates and of the tokens that they attend to."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from dlrm_jax.attention.block_pairs import BlockPairs, Chunk, Products
from dlrm_jax.attention.jagged import Candidates

# A block of candidates that have a history each does as many products as if all had all of these
# histories; small blocks keep that cheap beside what is done for the tokens.
_CANDIDATES, _TOKENS = 16, 256


class CandidateBlocks:
    """The arrays of an attention of N candidates to T tokens in blocks, filled up to whole ones.

    Args:
        query: queries of the candidates, [N, H, a].
        key: keys of the tokens, [T, H, a].
        value: values of the tokens, [T, H, v].
        of: tokens that each candidate attends to.
    """

    def __init__(
        self,
        query: Float[Array, "N H a"],
        key: Float[Array, "T H a"],
        value: Float[Array, "T H v"],
        of: Candidates,
    ):
        self._arrays = query, key, value
        self.query, self.key, self.value = self.of_candidates(query), _keys(key), _keys(value)
        # Filling attends to nothing, from 0 to 0.
        spans = _filled(of.firsts, _CANDIDATES), _filled(of.ends, _CANDIDATES)
        self.pairs = BlockPairs(*spans, _CANDIDATES, _TOKENS)
        self.product = Products(value.dtype)

    def scores(self, chunk: Chunk) -> Float[Array, "P H q k"]:
        """The products of queries and keys, those too that attend to each other not."""
        return self.product("phqa,phka->phqk", self.query[chunk.queries], self.key[chunk.keys])

    def of_candidates(self, x: Float[Array, "N H _"]) -> Float[Array, "n H q _"]:
        """An array of the candidates in blocks."""
        return _blocked(x, _CANDIDATES)

    def zeros_out(self) -> Float[Array, "n H q v"]:
        """Zeros for the blocks of what candidates find."""
        shape = *self.query.shape[:3], self.value.shape[3]
        return jnp.zeros(shape, self.product.sum_dtype)

    def flat_out(self, found: Float[Array, "n H q v"]) -> Float[Array, "N H v"]:
        """What candidates find, without blocks."""
        return _flat(found, self._arrays[0].shape[0]).astype(self._arrays[2].dtype)

    def backward(
        self,
        cotangent: Float[Array, "n H q v"],
        weights: Any,
    ) -> tuple[Float[Array, "N H a"], Float[Array, "T H a"], Float[Array, "T H v"]]:
        """The gradients of queries, keys and values.

        Args:
            cotangent: gradient of what candidates find, in blocks.
            weights: function of a chunk and of the gradient of its weights that returns the
                weights, and the gradient of `scores`.
        """
        product = self.product

        def add(chunk: Chunk, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            of_query, of_key, of_value = sums
            queries, keys = chunk.queries, chunk.keys
            own = cotangent[queries]
            of_weights = product("phqv,phkv->phqk", own, self.value[keys])
            found, of_scores = weights(chunk, of_weights)
            by_query = product("phqk,phka->phqa", of_scores, self.key[keys])
            of_query = of_query.at[queries].add(by_query, indices_are_sorted=True)
            of_key = of_key.at[keys].add(product("phqk,phqa->phka", of_scores, self.query[queries]))
            of_value = of_value.at[keys].add(product("phqk,phqv->phkv", found, own))
            return of_query, of_key, of_value

        arrays = self.query, self.key, self.value
        sums = self.pairs.loop(add, tuple(map(product.zeros, arrays)))
        query, key, value = (
            _flat(x, len(own)).astype(own.dtype) for x, own in zip(sums, self._arrays, strict=True)
        )
        return query, key, value


def _keys(x: Float[Array, "T H _"]) -> Float[Array, "n H k _"]:
    return _blocked(x, _TOKENS)


def _filled(x: Shaped[Array, "n *_"], size: int) -> Shaped[Array, "m *_"]:
    return jnp.pad(x, [(0, -len(x) % size), *[(0, 0)] * (x.ndim - 1)])


def _blocked(x: Float[Array, "n H _"], size: int) -> Float[Array, "b H s _"]:
    filled = _filled(x, size)
    return filled.reshape(-1, size, *x.shape[1:]).swapaxes(1, 2)


def _flat(x: Float[Array, "b H s _"], length: int) -> Float[Array, "n H _"]:
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])[:length]
