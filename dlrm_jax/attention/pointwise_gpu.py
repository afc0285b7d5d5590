"""HSTU's attention as Pallas kernels for GPUs, by Triton; `pointwise_attention` has the formula.

Packed tokens are cut into blocks. A program of the forward pass has one block of queries of one
head, and goes through the blocks of keys that its sequences need. So does a backward pass for the
gradients of queries and biases; another one has a block of keys, and goes through the queries that
need it. No array is larger than those of the tokens. Programs add up the gradient of the bias by
distance with atomics, in another order each time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int32

from dlrm_jax.attention.attention_bias import Bias
from dlrm_jax.attention.gpu_pair import BLOCK, BUCKETS, Inputs, Pair, cut, padded_inputs, tokens_of
from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.attention.pointwise_tile import places, spans


def forward(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    bias: Bias,
    sequences: Sequences,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "T H v"]:
    """See `pointwise_attention`.

    Args:
        query: queries.
        key: keys.
        value: values.
        bias: bias by distance and time.
        sequences: where the sequences are.
        scale: factor of all weights.
        interpret: whether a CPU emulates the GPU.
    """
    given = padded_inputs(query, key, value, bias, sequences, None)

    def kernel(first: Any, given: Inputs, out: Any) -> None:
        own, head = pl.program_id(0), pl.program_id(1)

        def add(number: Any, found: Array) -> Array:
            pair = Pair(given, head, own, number, scale, interpret)
            return found + pair.product(pair.weights, pair.value, 1, 0)

        start = jnp.zeros((BLOCK, out.shape[2]), jnp.float32)
        found = jax.lax.fori_loop(first[own], own + 1, add, start)
        out[tokens_of(own), head, :] = found.astype(out.dtype)

    first, _ = spans(given.starts, BLOCK)
    (out,) = _call(kernel, first, given, [given.value], {}, interpret)
    return cut(out, value)


def backward(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    bias: Bias,
    sequences: Sequences,
    scale: float,
    cotangent: Float[Array, "T H v"],
    interpret: bool = False,
) -> tuple[Float[Array, "T H a"], Float[Array, "T H a"], Float[Array, "T H v"], Bias]:
    """The gradients of `forward` by query, key, value and bias, given that of its result."""
    given = padded_inputs(query, key, value, bias, sequences, cotangent)
    of_query, of_bias = _by_queries(given, bias, scale, interpret)
    of_key, of_value = _by_keys(given, scale, interpret)
    return cut(of_query, query), cut(of_key, key), cut(of_value, value), of_bias


def _by_queries(
    given: Inputs, bias: Bias, scale: float, interpret: bool
) -> tuple[Float[Array, "T H a"], Bias]:
    """The gradients of queries and biases."""
    count, heads = len(given.starts) // BLOCK, given.query.shape[1]
    last = len(bias.by_distance) - 1
    far = min(count - 1, last // BLOCK + 2)  # pairs so many blocks apart have the last bias alone

    def kernel(
        first: Any, given: Inputs, _: Any, of_query: Any, of_distance: Any, of_time: Any
    ) -> None:
        own, head = pl.program_id(0), pl.program_id(1)
        bucket = jax.lax.broadcasted_iota(jnp.int32, (BUCKETS,), 0)
        of_tile = places(0, 0, BLOCK)

        def add(number: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            by_query, by_time = sums
            pair = Pair(given, head, own, number, scale, interpret)
            of_scores = pair.gradients()
            # Of one pair no two numbers are added to the same place.
            apart = jnp.minimum(own - number, far) * BLOCK + of_tile[0] - of_tile[1] + BLOCK
            plgpu.atomic_add(of_distance, (of_tile[0], apart), of_scores)
            if pair.buckets is not None:
                by_time += _sums_of_buckets(pair.buckets, of_scores, bucket)
            return by_query + pair.product(of_scores, pair.key, 1, 0), by_time

        start = jnp.zeros((BLOCK, of_query.shape[2]), jnp.float32), jnp.zeros(bucket.shape, "f4")
        found, by_time = jax.lax.fori_loop(first[own], own + 1, add, start)
        of_query[tokens_of(own), head, :] = found.astype(of_query.dtype)
        of_time[own, head, :] = by_time

    columns = jnp.zeros((BLOCK, (far + 2) * BLOCK), jnp.float32)
    outs = [given.query, columns, jax.ShapeDtypeStruct((count, heads, BUCKETS), jnp.float32)]
    first, _ = spans(given.starts, BLOCK)
    aliases = {len(jax.tree.leaves(given)) + 1: 1}
    of_query, of_distance, of_time = _call(kernel, first, given, outs, aliases, interpret, columns)
    distance = jnp.clip(jnp.arange(columns.shape[1]) - BLOCK, 0, last)
    by_distance = jnp.zeros_like(bias.by_distance)
    by_distance = by_distance.at[distance].add(of_distance.sum(0).astype(by_distance.dtype))
    if bias.by_time is None:
        return of_query, Bias(by_distance)
    by_time = jnp.zeros_like(bias.by_time)
    own = of_time.sum((0, 1)).astype(by_time.dtype)
    return of_query, Bias(by_distance, by_time.at[:BUCKETS].set(own))


def _sums_of_buckets(
    buckets: Int32[Array, "q k"], values: Float[Array, "q k"], bucket: Int32[Array, " b"]
) -> Float[Array, " b"]:
    """The sums of a pair's values by bucket."""

    def add(number: Any, found: Array) -> Array:
        own = jnp.sum(jnp.where(buckets == number, values, jnp.float32(0)))
        return found + jnp.where(bucket == number, own, jnp.float32(0))

    # Far from the diagonal few buckets occur: they are logarithmic.
    first, last = jnp.min(buckets), jnp.max(buckets)
    return jax.lax.fori_loop(first, last + 1, add, jnp.zeros(bucket.shape, jnp.float32))


def _by_keys(
    given: Inputs, scale: float, interpret: bool
) -> tuple[Float[Array, "T H a"], Float[Array, "T H v"]]:
    """The gradients of keys and values."""

    def kernel(behind: Any, given: Inputs, of_key: Any, of_value: Any) -> None:
        own, head = pl.program_id(0), pl.program_id(1)

        def add(number: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            by_key, by_value = sums
            pair = Pair(given, head, number, own, scale, interpret)
            by_key += pair.product(pair.gradients(), pair.query, 0, 0)
            return by_key, by_value + pair.product(pair.weights, pair.cotangent, 0, 0)

        outs = of_key, of_value
        start = tuple(jnp.zeros((BLOCK, out.shape[2]), jnp.float32) for out in outs)
        found = jax.lax.fori_loop(own, behind[own], add, start)
        for out, sums in zip(outs, found, strict=True):
            out[tokens_of(own), head, :] = sums.astype(out.dtype)

    _, behind = spans(given.starts, BLOCK)
    return _call(kernel, behind, given, [given.key, given.value], {}, interpret)


def _call(
    kernel: Any,
    of_blocks: Array,
    given: Inputs,
    outs: list[Any],
    aliases: dict[int, int],
    interpret: bool,
    *more: Array,
) -> Any:
    """Runs a kernel for each block of tokens and each head.

    Args:
        kernel: function of the references of all inputs and all results.
        of_blocks: spans of blocks, from `spans`.
        given: arrays that it reads.
        outs: arrays like the results.
        aliases: results that begin as inputs, by the numbers of both.
        interpret: whether a CPU emulates the GPU.
        more: other inputs.
    """
    return pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs],
        grid=(len(of_blocks), given.query.shape[1]),
        input_output_aliases=aliases,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(of_blocks, given, *more)
