"""The dtype of vectors and cotangents between devices; a narrower one saves bytes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt

from dlrm_jax.embedding.table import is_floating
from dlrm_jax.errors import UserError


def check_dtype(dtype: str | None, name: str = "comm_dtype") -> None:
    """Checks that a dtype is floating; the message has the name of the argument.

    Raises:
        UserError: the dtype isn't floating.
    """
    if dtype is not None and not is_floating(dtype):
        raise UserError(f"{name}: expected a floating dtype, got {dtype}")


def pack(x: Shaped[Array, "*s"], dtype: str | None) -> Shaped[Array, "*s"]:
    """Casts numbers to the dtype of a collective, as integers of the same bits.

    XLA's CPU backend has no bfloat16 collectives and would send floats as float32.

    Args:
        x: array to send.
        dtype: dtype between devices; None leaves the array as it is.
    """
    return x if dtype is None else bits(x.astype(dtype))


def bits(x: Shaped[Array, "*s"]) -> UInt[Array, "*s"]:
    """Casts to unsigned integers of the same bits, so that one collective carries all dtypes."""
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))


def unpack(x: Shaped[Array, "*s"], dtype: str | None, to: jnp.dtype) -> Shaped[Array, "*s"]:
    """Reverses `pack`; the result has the dtype ``to``."""
    if dtype is None:
        return x
    return jax.lax.bitcast_convert_type(x, jnp.dtype(dtype)).astype(to)
