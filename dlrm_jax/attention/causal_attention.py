"""Softmax attention to the tokens up to each one in its sequence, as in SASRec's Transformer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlrm_jax.attention.block_pairs import BlockPairs, Chunk, Products, blocks
from dlrm_jax.attention.jagged import Sequences


@jax.custom_vjp
def causal_attention(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    sequences: Sequences,
) -> Float[Array, "T H v"]:
    """Σⱼ softmaxⱼ(qᵢ·kⱼ / √a) vⱼ over the tokens j up to i in its sequence.

    Filling gets zeros. The backward pass computes scores again.

    Args:
        query: queries of T tokens and H heads.
        key: keys.
        value: values.
        sequences: where the sequences are.

    Raises:
        UserError: `BLOCK` doesn't divide T.
    """
    return _forward(query, key, value, sequences)[0]


class _Blocked:
    """The arrays of an attention in blocks, [N, BLOCK, ...]."""

    def __init__(self, query: Array, key: Array, value: Array, sequences: Sequences):
        self.query, self.key, self.value = blocks(query), blocks(key), blocks(value)
        self.pairs, self.product = BlockPairs.causal(sequences), Products(value.dtype)
        self._scale = query.shape[-1] ** -0.5

    def scores(self, chunk: Chunk) -> Float[Array, "P H q k"]:
        """The scores of pairs of blocks; -∞ where a query doesn't attend to a key."""
        of_queries, of_keys = self.query[chunk.queries], self.key[chunk.keys]
        scores = self._scale * self.product("pqha,pkha->phqk", of_queries, of_keys)
        return jnp.where(chunk.seen[:, None], scores, -jnp.inf)


def _forward(query: Any, key: Any, value: Any, sequences: Any) -> Any:
    blocked = _Blocked(query, key, value, sequences)
    shape = *blocked.query.shape[:2], query.shape[1]  # [N, q, H]

    def largest(chunk: Chunk, found: Array) -> Array:
        own = blocked.scores(chunk).max(axis=3).swapaxes(1, 2)
        return found.at[chunk.queries].max(own, indices_are_sorted=True)

    def add(chunk: Chunk, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        total, out = sums
        weights = jnp.exp(blocked.scores(chunk) - _by_head(most[chunk.queries]))
        own = blocked.product("phqk,pkhd->pqhd", weights, blocked.value[chunk.keys])
        total = total.at[chunk.queries].add(weights.sum(3).swapaxes(1, 2), indices_are_sorted=True)
        return total, out.at[chunk.queries].add(own, indices_are_sorted=True)

    # Twice through the pairs: a running maximum would need those of a query one after the other.
    least = jnp.full(shape, jnp.finfo(blocked.product.sum_dtype).min, blocked.product.sum_dtype)
    most = blocked.pairs.loop(largest, least)
    zeros = jnp.zeros_like(most), blocked.product.zeros(blocked.value)
    total, out = blocked.pairs.loop(add, zeros)
    total = jnp.where(total > 0, total, 1)  # filling attends to nothing
    out = (out / total[..., None]).reshape(value.shape).astype(value.dtype)
    return out, (query, key, value, sequences, most + jnp.log(total), out)


def _backward(saved: Any, cotangent: Float[Array, "T H v"]) -> Any:
    query, key, value, sequences, log_total, out = saved
    blocked, given = _Blocked(query, key, value, sequences), (query, key, value)
    product, of_out = blocked.product, blocks(cotangent)
    scale = given[0].shape[-1] ** -0.5
    # Σⱼ wⱼ (∂ / ∂wⱼ), which the softmax takes off.
    mean = product("nqhd,nqhd->nqh", of_out, blocks(out))

    def add(chunk: Chunk, sums: Any) -> Any:
        of_query, of_key, of_value = sums
        queries, keys = chunk.queries, chunk.keys
        weights = jnp.exp(blocked.scores(chunk) - _by_head(log_total[queries]))
        own = of_out[queries]
        of_weights = product("pqhd,pkhd->phqk", own, blocked.value[keys])
        of_scores = scale * weights * (of_weights - _by_head(mean[queries]))
        by_query = product("phqk,pkha->pqha", of_scores, blocked.key[keys])
        by_key = product("phqk,pqha->pkha", of_scores, blocked.query[queries])
        by_value = product("phqk,pqhd->pkhd", weights, own)
        of_query = of_query.at[queries].add(by_query, indices_are_sorted=True)
        return of_query, of_key.at[keys].add(by_key), of_value.at[keys].add(by_value)

    arrays = blocked.query, blocked.key, blocked.value
    sums = blocked.pairs.loop(add, tuple(map(product.zeros, arrays)))
    found = (x.reshape(own.shape).astype(own.dtype) for x, own in zip(sums, given, strict=True))
    return *found, None


def _by_head(of_queries: Float[Array, "P q H"]) -> Float[Array, "P H q 1"]:
    return of_queries.swapaxes(1, 2)[..., None]


causal_attention.defvjp(_forward, _backward)
