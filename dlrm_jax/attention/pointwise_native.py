"""HSTU's attention by native kernels, for CPUs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from dlrm_jax.attention.attention_bias import Bias
from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.native import pointwise_attention as native


def forward(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    bias: Bias,
    sequences: Sequences,
    scale: float,
) -> Float[Array, "T H v"]:
    """See `pointwise_attention`; computes in float32."""
    given = _float32(query, key, value, bias, sequences)
    return native.attend(*given, scale).astype(value.dtype)


def backward(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    bias: Bias,
    sequences: Sequences,
    scale: float,
    cotangent: Float[Array, "T H v"],
) -> tuple[Array, Array, Array, Bias]:
    """The cotangents of queries, keys, values and bias."""
    given = _float32(query, key, value, bias, sequences)
    found = native.attend_back(*given, scale, cotangent.astype(jnp.float32))
    of = query, key, value, *(x for x in bias if x is not None)
    of_query, of_key, of_value, *of_bias = (
        x.astype(own.dtype) for x, own in zip(found, of, strict=True)
    )
    return of_query, of_key, of_value, Bias(*of_bias)


def _float32(
    query: Array, key: Array, value: Array, bias: Bias, sequences: Sequences
) -> tuple[Array, Array, Array, Array, Array, list[Any]]:
    """The arguments of the native calls up to the scale."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    by_time: list[Any] = []
    if bias.by_time is not None:
        by_time = [bias.by_time.astype(jnp.float32), sequences.times, sequences.next_times]
    by_distance = bias.by_distance.astype(jnp.float32)
    return query, key, value, sequences.starts, by_distance, by_time
