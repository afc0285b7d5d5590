"""The numbers that collectives carry, perhaps in fewer bits than they are computed with."""

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
        raise UserError(f"comm_dtype: expected a floating dtype, got {dtype}")


def pack(x: Shaped[Array, "*s"], dtype: str | None) -> Shaped[Array, "*s"]:
    """The array as it travels: its numbers in this dtype, as integers of the same bits.

    As floats XLA would send them in float32 on CPU, which has no bfloat16 collectives.
    None leaves the array as it is.
    """
    return x if dtype is None else bits(x.astype(dtype))


def bits(x: Shaped[Array, "*s"]) -> UInt[Array, "*s"]:
    """The numbers as unsigned integers of the same bits, so that different ones travel together."""
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))


def unpack(x: Shaped[Array, "*s"], dtype: str | None, to: jnp.dtype) -> Shaped[Array, "*s"]:
    """The opposite of `pack`, in the dtype ``to``."""
    if dtype is None:
        return x
    return jax.lax.bitcast_convert_type(x, jnp.dtype(dtype)).astype(to)
