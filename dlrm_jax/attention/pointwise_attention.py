"""HSTU's attention: pointwise weights, with a bias by distance and time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlrm_jax.attention.attention_bias import Bias, add_bias_gradient, block_bias
from dlrm_jax.attention.block_pairs import BlockPairs, Chunk, Products, blocks, check_blocks
from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.attention.pointwise_kernels import kernels_for


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def pointwise_attention(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    bias: Bias,
    sequences: Sequences,
    scale: float,
) -> Float[Array, "T H v"]:
    """Attends to the tokens up to each one in its sequence: Σⱼ scale · SiLU(qᵢ·kⱼ + bᵢⱼ) vⱼ.

    As in HSTU (arXiv 2402.17152, equation 2) the weights aren't a softmax's: how often something
    occurs in a history tells, too. Filling gets zeros. The backward pass computes scores again.
    This is XLA's form; most devices have kernels of their own, see `pointwise_kernels`.

    Args:
        query: queries of T tokens and H heads.
        key: keys.
        value: values.
        bias: bias by distance and time.
        sequences: where the sequences are.
        scale: factor of all weights, such as 1 / the longest length.

    Raises:
        UserError: `BLOCK` doesn't divide T.
    """
    check_blocks(len(value))
    if (kernels := kernels_for(value.dtype)) is not None:
        return kernels.forward(query, key, value, bias, sequences, scale)
    blocked = _Blocked(query, key, value, bias, sequences)

    def add(chunk: Chunk, out: Array) -> Array:
        weights, _ = blocked.weights(chunk, scale)
        found = blocked.product("phqk,pkhd->pqhd", weights, blocked.value[chunk.keys])
        return out.at[chunk.queries].add(found, indices_are_sorted=True)

    out = blocked.pairs.loop(add, blocked.product.zeros(blocked.value))
    return out.reshape(value.shape).astype(value.dtype)


class _Blocked:
    """The arrays of an attention in blocks, [N, BLOCK, ...]."""

    def __init__(self, query: Array, key: Array, value: Array, bias: Bias, sequences: Sequences):
        self.query, self.key, self.value = blocks(query), blocks(key), blocks(value)
        self.bias, self.sequences = bias, sequences
        self.pairs, self.product = BlockPairs.causal(sequences), Products(value.dtype)

    def weights(
        self, chunk: Chunk, scale: float
    ) -> tuple[Float[Array, "P H q k"], Float[Array, "P H q k"]]:
        """The weights of pairs of blocks, and their derivatives by the scores."""
        of_queries, of_keys = self.query[chunk.queries], self.key[chunk.keys]
        scores = self.product("pqha,pkha->phqk", of_queries, of_keys)
        bias = block_bias(self.bias, self.sequences, chunk)
        scores += bias[:, None].astype(scores.dtype)
        factor = jnp.where(chunk.seen, scale, 0.0).astype(scores.dtype)[:, None]
        half = jax.nn.sigmoid(scores)
        return factor * scores * half, factor * half * (1 + scores * (1 - half))


def _forward(query: Any, key: Any, value: Any, bias: Any, sequences: Any, scale: float) -> Any:
    out = pointwise_attention(query, key, value, bias, sequences, scale)
    return out, (query, key, value, bias, sequences)


def _backward(scale: float, saved: Any, cotangent: Float[Array, "T H v"]) -> Any:
    if (kernels := kernels_for(saved[2].dtype)) is not None:
        return *kernels.backward(*saved, scale, cotangent), None
    blocked, (*given, bias, _) = _Blocked(*saved), saved
    of_out, product = blocks(cotangent), blocked.product

    def add(chunk: Chunk, sums: Any) -> Any:
        of_query, of_key, of_value, of_bias = sums
        queries, keys = chunk.queries, chunk.keys
        weights, slopes = blocked.weights(chunk, scale)
        own = of_out[queries]
        of_scores = slopes * product("pqhd,pkhd->phqk", own, blocked.value[keys])
        of_bias = add_bias_gradient(of_bias, of_scores.sum(1), blocked.sequences, chunk)
        by_query = product("phqk,pkha->pqha", of_scores, blocked.key[keys])
        by_key = product("phqk,pqha->pkha", of_scores, blocked.query[queries])
        by_value = product("phqk,pqhd->pkhd", weights, own)
        of_query = of_query.at[queries].add(by_query, indices_are_sorted=True)
        return of_query, of_key.at[keys].add(by_key), of_value.at[keys].add(by_value), of_bias

    arrays = blocked.query, blocked.key, blocked.value
    start = *map(product.zeros, arrays), jax.tree.map(jnp.zeros_like, bias)
    *sums, of_bias = blocked.pairs.loop(add, start)
    found = (x.reshape(own.shape).astype(own.dtype) for x, own in zip(sums, given, strict=True))
    return *found, of_bias, None


pointwise_attention.defvjp(_forward, _backward)
