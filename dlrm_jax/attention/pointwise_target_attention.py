"""HSTU's pointwise attention of candidates to the tokens of their histories."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlrm_jax.attention.block_pairs import Chunk
from dlrm_jax.attention.candidate_blocks import CandidateBlocks
from dlrm_jax.attention.jagged import Candidates


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def pointwise_target_attention(
    query: Float[Array, "N H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    of: Candidates,
    scale: float,
) -> Float[Array, "N H v"]:
    """Σⱼ scale · SiLU(qᵢ·kⱼ) vⱼ over the tokens j of candidate i's history.

    As `pointwise_attention`, of which a bias is a further number of each key whose partner in
    each query is 1. The backward pass computes scores again.

    Args:
        query: queries of N candidates and H heads; those of one history lie together.
        key: keys of T tokens.
        value: values.
        of: history of each candidate.
        scale: factor of all weights.
    """
    blocks = CandidateBlocks(query, key, value, of)

    def add(chunk: Chunk, out: Array) -> Array:
        weights = _factor(chunk, scale) * jax.nn.silu(blocks.scores(chunk))
        own = blocks.product("phqk,phkv->phqv", weights, blocks.value[chunk.keys])
        return out.at[chunk.queries].add(own, indices_are_sorted=True)

    return blocks.flat_out(blocks.pairs.loop(add, blocks.zeros_out()))


def _factor(chunk: Chunk, scale: float) -> Float[Array, "P 1 q k"]:
    return jnp.where(chunk.seen, scale, 0.0)[:, None]


def _forward(query: Any, key: Any, value: Any, of: Candidates, scale: float) -> Any:
    return pointwise_target_attention(query, key, value, of, scale), (query, key, value, of)


def _backward(scale: float, saved: Any, cotangent: Float[Array, "N H v"]) -> Any:
    blocks = CandidateBlocks(*saved)

    def weights(chunk: Chunk, of_weights: Array) -> tuple[Array, Array]:
        scores, factor = blocks.scores(chunk), _factor(chunk, scale)
        half = jax.nn.sigmoid(scores)
        slopes = factor * half * (1 + scores * (1 - half))
        return factor * scores * half, slopes * of_weights

    return *blocks.backward(blocks.of_candidates(cotangent), weights), None


pointwise_target_attention.defvjp(_forward, _backward)
