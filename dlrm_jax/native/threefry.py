"""JAX's default random numbers by a native kernel, to the same bits.

XLA compiles its own formulation anew for each shape that is drawn: the initial values of DLRM's
MLPs took 2.5 s before the first run, with this kernel 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl
from jaxtyping import Array, Integer, Key, UInt, UInt32


def is_default() -> bool:
    """Whether `jax.random` draws such numbers, as it does unless it is configured otherwise."""
    config: Any = jax.config
    generator = config.jax_default_prng_impl
    return generator == "threefry2x32" and config.jax_threefry_partitionable


def key(seed: int) -> Key[Array, ""]:
    """The key of a seed: all that is drawn with it is what ``jax.random.key(seed)`` gives.

    Args:
        seed: seed, as `jax.random.key` takes it.
    """
    return jax.random.wrap_key_data(_seed(seed), impl=_GENERATOR)


def _seed(seed: int | Array) -> UInt32[Array, "2"]:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _bits(
    key: UInt32[Array, "2"], first: UInt32[Array, ""] | np.uint32, count: int
) -> Sequence[UInt32[Array, " n"]]:
    """Two words of random bits of each of ``count`` counters from ``first`` on."""
    words = [jax.ShapeDtypeStruct((count,), np.uint32)] * 2
    return jax.ffi.ffi_call("dlrm_jax_threefry", words, vmap_method="sequential")(key, first)


def _random_bits(
    key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]
) -> UInt[Array, "*_"]:
    """Random unsigned integers of 8, 16, 32 or 64 bits."""
    high, low = (x.reshape(shape) for x in _bits(key, np.uint32(0), math.prod(shape)))
    if bit_width == 64:
        return high.astype(np.uint64) << 32 | low.astype(np.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "*_ 2"]:
    return jnp.stack(_bits(key, np.uint32(0), math.prod(shape)), axis=-1).reshape(*shape, 2)


def _fold_in(key: UInt32[Array, "2"], number: int | Integer[Array, ""]) -> UInt32[Array, "2"]:
    return jnp.concatenate(_bits(key, jnp.asarray(number, np.uint32), 1))


_GENERATOR = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="dlrm_jax_threefry2x32",
    tag="dlrm",
)
