"""Softmax attention of candidates to the tokens of their histories."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlrm_jax.attention.block_pairs import Chunk
from dlrm_jax.attention.candidate_blocks import CandidateBlocks
from dlrm_jax.attention.jagged import Candidates


@jax.custom_vjp
def target_attention(
    query: Float[Array, "N H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    of: Candidates,
) -> Float[Array, "N H v"]:
    """Σⱼ softmaxⱼ(qᵢ·kⱼ / √a) vⱼ over the tokens j of candidate i's history.

    A candidate without a history gets zeros. Time and memory grow with the tokens, and no array
    of all candidates and tokens is made. The backward pass computes scores again.

    Args:
        query: queries of N candidates and H heads; those of one history lie together.
        key: keys of T tokens.
        value: values.
        of: history of each candidate.
    """
    return _forward(query, key, value, of)[0]


def _scores(blocks: CandidateBlocks, chunk: Chunk) -> Float[Array, "P H q k"]:
    scale = blocks.query.shape[3] ** -0.5
    return jnp.where(chunk.seen[:, None], scale * blocks.scores(chunk), -jnp.inf)


def _forward(query: Any, key: Any, value: Any, of: Candidates) -> Any:
    blocks = CandidateBlocks(query, key, value, of)
    product = blocks.product

    def largest(chunk: Chunk, found: Array) -> Array:
        own = _scores(blocks, chunk).max(axis=3)
        return found.at[chunk.queries].max(own, indices_are_sorted=True)

    def add(chunk: Chunk, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        total, out = sums
        weights = jnp.exp(_scores(blocks, chunk) - most[chunk.queries][..., None])
        own = product("phqk,phkv->phqv", weights, blocks.value[chunk.keys])
        total = total.at[chunk.queries].add(weights.sum(axis=3), indices_are_sorted=True)
        return total, out.at[chunk.queries].add(own, indices_are_sorted=True)

    # Twice through the pairs: a running maximum would need those of a query one after the other.
    least = jnp.finfo(product.sum_dtype).min
    start = jnp.full(blocks.query.shape[:3], least, product.sum_dtype)
    most = blocks.pairs.loop(largest, start)
    total, out = blocks.pairs.loop(add, (jnp.zeros_like(most), blocks.zeros_out()))
    total = jnp.where(total > 0, total, 1)  # nothing is attended to
    found = blocks.flat_out(out / total[..., None])
    return found, (query, key, value, of, most + jnp.log(total), found)


def _backward(saved: Any, cotangent: Float[Array, "N H v"]) -> Any:
    *given, log_total, out = saved
    blocks = CandidateBlocks(*given)
    scale = blocks.query.shape[3] ** -0.5
    of_out = blocks.of_candidates(cotangent)
    # Σⱼ wⱼ (∂ / ∂wⱼ), which the softmax takes off.
    mean = blocks.product("nhqv,nhqv->nhq", of_out, blocks.of_candidates(out))

    def weights(chunk: Chunk, of_weights: Array) -> tuple[Array, Array]:
        found = jnp.exp(_scores(blocks, chunk) - log_total[chunk.queries][..., None])
        return found, scale * found * (of_weights - mean[chunk.queries][..., None])

    return *blocks.backward(of_out, weights), None


target_attention.defvjp(_forward, _backward)
