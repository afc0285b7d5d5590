"""The numbers that collectives carry, in fewer bits than they are computed with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt

from dlrm_jax.embedding.table import is_floating
from dlrm_jax.errors import UserError


def check_dtype(dtype: str | None) -> None:
    """Vectors can travel in any floating dtype.

    Raises:
        UserError: it is another.
    """
    if dtype is not None and not is_floating(dtype):
        raise UserError(f"exchange_dtype: expected a floating dtype, got {dtype}")


def pack(x: Shaped[Array, "*s"], dtype: str | None) -> Shaped[Array, "*s"]:
    """The array as it travels: its numbers in this dtype, as integers of the same bits.

    As floats XLA would send them in float32 on CPU, which has no bfloat16 collectives.
    None leaves the array as it is.
    """
    return x if dtype is None else to_bits(x.astype(dtype), jnp.dtype(dtype).itemsize)


def to_bits(x: Shaped[Array, "*s n"], width: int) -> UInt[Array, "*s m"]:
    """Numbers of any dtype as unsigned integers of ``width`` bytes, several for each wider one."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * width}"))
    return bits.reshape(*x.shape[:-1], -1)


def from_bits(bits: UInt[Array, "*s m"], dtype: jnp.dtype) -> Shaped[Array, "*s n"]:
    """The opposite of `to_bits`."""
    each = dtype.itemsize // bits.dtype.itemsize
    if each > 1:
        bits = bits.reshape(*bits.shape[:-1], -1, each)
    return jax.lax.bitcast_convert_type(bits, dtype)


def unpack(x: Shaped[Array, "*s"], dtype: str | None, to: jnp.dtype) -> Shaped[Array, "*s"]:
    """The opposite of `pack`, in the dtype ``to``."""
    if dtype is None:
        return x
    return jax.lax.bitcast_convert_type(x, jnp.dtype(dtype)).astype(to)
