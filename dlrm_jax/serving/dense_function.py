"""DLRM's dense model as a function of JAX, with layers in float32, bfloat16 or int8.

It is what an artifact's program computes, and what native code computes by the same operations on
floats in the same order: of the same inputs, layers in int8 have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from dlrm_jax.artifact.dense_note import DenseNote, LinearNote, QuantizationNote
from dlrm_jax.models.interaction import dot

Arrays = Mapping[str, Any]
"""Arrays by name."""

Seen = Callable[[LinearNote, Array], None]
"""A function of a layer and its inputs, [B, in]."""


def dense_logits(
    note: DenseNote,
    layers: Arrays,
    dense: Float32[Array, "B D"],
    vectors: Arrays,
    seen: Seen | None = None,
) -> Float32[Array, " B"]:
    """The logits of examples.

    Args:
        note: layers, and which vectors interact.
        layers: arrays of the dense model by name.
        dense: dense features.
        vectors: vectors by lookup, [B, d].
        seen: function that is called with the inputs of each layer.
    """
    x = _mlp(note.bottom, layers, dense, seen)
    z = dot(x, [vectors[name] for name in note.vectors], note.self_interaction)
    return _mlp(note.top, layers, z, seen)[:, 0]


def _mlp(
    notes: tuple[LinearNote, ...], layers: Arrays, x: Float[Array, "B in"], seen: Seen | None
) -> Float[Array, "B out"]:
    first, y = notes[0], x
    rounded = x if first.quantization else x.astype(layers[first.kernel].dtype)
    finite = jnp.isfinite(rounded).all(axis=1)
    for before, note in zip((first, *notes), notes, strict=False):
        if seen:
            seen(note, y)
        if note.quantization and not before.quantization:
            finite &= jnp.isfinite(y).all(axis=1)
        y = linear(note, layers, y)
    if any(note.quantization for note in notes):  # integers can't be NaN or infinite
        y = jnp.where(finite[:, None], y, jnp.nan)
    return y


def linear(note: LinearNote, layers: Arrays, x: Float32[Array, "B in"]) -> Float32[Array, "B out"]:
    """The outputs of one layer, with its ReLU; see `artifact.dense_note`."""
    kernel, bias = layers[note.kernel], layers[note.bias]
    if note.quantization is None:
        y = jnp.dot(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32) + bias
        return jax.nn.relu(y) if note.relu else y
    integers = quantize(note.quantization, layers, x)
    contracted = (((1,), (0,)), ((), ()))
    sums = lax.dot_general(integers, kernel, contracted, preferred_element_type=jnp.int32) + bias
    sums = jnp.maximum(sums, 0) if note.relu else sums
    return sums.astype(jnp.float32) * layers[note.quantization.scale]


def quantize(note: QuantizationNote, layers: Arrays, x: Float32[Array, "B in"]) -> Array:
    """The inputs of a layer as integers, int8 [B, in]; what isn't finite becomes any."""
    levels, zero = layers[note.levels], layers[note.zero]
    low, high = (-128 - zero).astype(jnp.float32), (127 - zero).astype(jnp.float32)
    return (jnp.rint(jnp.clip(x * levels, low, high)).astype(jnp.int32) + zero).astype(jnp.int8)
