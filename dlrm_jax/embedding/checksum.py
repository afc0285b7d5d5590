"""Checksums of arrays: 64 bits that a change of any number changes, on devices and on the host.

Each number's bits are mixed with its place in two ways, and each mixture is summed mod 2³². Both
are bijections of the bits, so one changed number is always seen. Of several, about one in 2⁶⁴
random changes isn't. A sum has no order: parts of an array may be summed apart, on any devices.

The sum of unmixed products misses every second change of the same high bit: an odd factor moves a
sign bit to itself, so two of them cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

# One for each axis, so that the place of each number depends on all its indices. The last two are
# for the halves of numbers of 64 bits and the parts of complex ones.
_FACTORS = (2654435761, 2246822519, 3266489917, 668265263, 374761393)

# Numbers that are summed at a time: a chunk stays in a processor's cache. Of large arrays more, as
# each chunk is a program of its own on an accelerator. XLA would copy a whole array on a CPU.
_ELEMENTS = 2**16
_CHUNKS = 2**11


def place(*indices: Any) -> Any:
    """The place of a number: the sum of its indices times odd factors, mod 2³².

    Args:
        indices: indices by axis, uint32.
    """
    total = np.uint32(0)
    with np.errstate(over="ignore"):  # of NumPy's scalars; arrays wrap in silence
        for axis, index in enumerate(indices):
            total = total + index * np.uint32(_FACTORS[axis % len(_FACTORS)])
    return total


def checksum(x: Shaped[Array, "..."], first: Any = 0, words: int = 2) -> UInt32[Array, " {words}"]:
    """The checksum of an array, or of a part of one. Call it under `jax.jit`.

    Args:
        x: array; of random keys, their data is meant.
        first: place of the first number, for a part; see `place`.
        words: number of sums to make, 1 or 2.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = x if x.ndim else x[None]
    elements = max(_ELEMENTS, x.size // _CHUNKS)
    length = min(len(x), max(1, elements // max(1, math.prod(x.shape[1:]))))

    def mixed(start: Any, length: int) -> list[UInt32[Array, "..."]]:
        bits = _bits(jax.lax.dynamic_slice_in_dim(x, start, length))
        indices = (jax.lax.broadcasted_iota(jnp.uint32, bits.shape, i) for i in range(bits.ndim))
        places = first + place(jnp.asarray(start, jnp.uint32)) + place(*indices)
        return _mixtures(bits, places)[:words]

    def more(number: Any, sums: list[Array]) -> list[Array]:
        return [a + b for a, b in zip(sums, mixed(number * length, length), strict=True)]

    chunks = len(x) // length if length else 0
    zeros = [jnp.zeros(y.shape, y.dtype) for y in jax.eval_shape(lambda: mixed(0, length))]
    sums = jax.lax.fori_loop(0, chunks, more, zeros)
    rest = mixed(chunks * length, len(x) - chunks * length)
    return jnp.stack([_sum(a) + _sum(b) for a, b in zip(sums, rest, strict=True)])


def _sum(x: UInt32[Array, "..."]) -> UInt32[Array, ""]:
    return jnp.sum(x, dtype=jnp.uint32)


def checksum_on_host(x: Shaped[np.ndarray, "..."], first: Any = 0) -> UInt32[np.ndarray, "2"]:
    """The same number as `checksum`, by NumPy. It compiles nothing, and takes twice as long."""
    x = x if x.ndim else x[None]
    length = max(1, _ELEMENTS // max(1, math.prod(x.shape[1:])))
    total = np.zeros(2, np.uint32)
    with np.errstate(over="ignore"):
        for start in range(0, len(x), length):
            bits = _bits_on_host(x[start : start + length])
            indices = np.ogrid[tuple(slice(n) for n in bits.shape)]
            within = place(*(index.astype(np.uint32) for index in indices))
            places = first + place(np.uint32(start % 2**32)) + within
            total += [np.sum(y, dtype=np.uint32) for y in _mixtures(bits, places)]
    return total


def _mixtures(bits: Any, places: Any) -> list[Any]:
    """Two bijections of each number's bits, which depend on its place, of JAX or of NumPy."""
    x = bits * (2 * places + 1)
    x = (x ^ (x >> 15)) * np.uint32(0x2C1B3C6D)
    # "lowbias32" of https://github.com/skeeto/hash-prospector
    y = bits + places
    y = (y ^ (y >> 16)) * np.uint32(0x7FEB352D)
    y = (y ^ (y >> 15)) * np.uint32(0x846CA68B)
    return [x ^ (x >> 12), y ^ (y >> 16)]


def _bits(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The bits of each number; 64 of them, or complex parts, are numbers along a new axis."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([np.real(x), np.imag(x)], axis=-1)
    if wider := _wider(x.dtype):
        x = x.astype(wider)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)


def _bits_on_host(x: Shaped[np.ndarray, "..."]) -> UInt32[np.ndarray, "..."]:
    """The same as `_bits`, by NumPy."""
    if np.iscomplexobj(x):
        x = np.stack([np.real(x), np.imag(x)], axis=-1)
    if wider := _wider(x.dtype):
        x = x.astype(wider)
    x = np.ascontiguousarray(x)
    if x.dtype.itemsize <= 4:
        return x.view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32)
    return x[..., None].view(np.dtype("<u4"))


def _wider(dtype: Any) -> Any:
    """A dtype for what has no whole bytes: Booleans, int4 and their like; None for others.

    Each of their numbers is one of it, so that the bits of one differ with the number.
    """
    if np.dtype(dtype) == np.bool:
        return np.uint8
    info: Callable[[Any], Any] = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    if info(dtype).bits >= 8:
        return None
    return np.int32 if jnp.issubdtype(dtype, jnp.integer) else np.float32
