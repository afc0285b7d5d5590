"""HSTU's pointwise attention as native calls, see pointwise_attention.h."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int32


def attend(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    starts: Int32[Array, " T"],
    by_distance: Float[Array, " L"],
    by_time: Sequence[Array],
    scale: float,
) -> Float[Array, "T H v"]:
    """The attention of each token to those up to it in its sequence, in float32.

    Args:
        query: queries of T tokens and H heads.
        key: keys.
        value: values.
        starts: place of the first token of each token's sequence; T for filling.
        by_distance: bias of each distance; those farther away take the last one.
        by_time: bias of each bucket of time, time of each token, [T] int32, and of the one that
            follows it; none for no bias by time.
        scale: factor of all weights.
    """
    _check_shapes(query, key, value, starts, *by_time[1:])
    call = jax.ffi.ffi_call("dlrm_jax_pointwise_attention", _like(value))
    return call(query, key, value, starts, by_distance, *by_time, scale=np.float32(scale))


def attend_back(
    query: Float[Array, "T H a"],
    key: Float[Array, "T H a"],
    value: Float[Array, "T H v"],
    starts: Int32[Array, " T"],
    by_distance: Float[Array, " L"],
    by_time: Sequence[Array],
    scale: float,
    cotangent: Float[Array, "T H v"],
) -> list[Array]:
    """The cotangents of queries, keys, values, ``by_distance`` and the first one of ``by_time``.

    Args:
        query: queries, and all up to ``scale`` as for `attend`.
        key: keys.
        value: values.
        starts: places of the sequences' first tokens.
        by_distance: bias of each distance.
        by_time: bias of each bucket of time, and the times.
        scale: factor of all weights.
        cotangent: cotangent of the result.
    """
    _check_shapes(query, key, value, starts, *by_time[1:])
    shapes = [_like(x) for x in (query, key, value, by_distance, *by_time[:1])]
    call = jax.ffi.ffi_call("dlrm_jax_pointwise_attention_back", shapes)
    given = query, key, value, starts, by_distance, cotangent, *by_time
    return list(call(*given, scale=np.float32(scale)))


def _check_shapes(query: Array, key: Array, value: Array, *of_tokens: Array) -> None:
    """Checks shapes: on a mismatch the kernels would read beyond the ends."""
    tokens = len(query)
    if query.shape != key.shape or query.shape[:2] != value.shape[:2]:
        shapes = query.shape, key.shape, value.shape
        raise ValueError(f"expected queries and keys of one shape, values of as many, got {shapes}")
    if wrong := [x.shape for x in of_tokens if x.shape != (tokens,)]:
        raise ValueError(f"expected starts and times of {tokens} tokens, got {wrong[0]}")


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
