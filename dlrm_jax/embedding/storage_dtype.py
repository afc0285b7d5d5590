"""The storage dtype of tables: numbers of 16 bits are stored as integers of the same bits.

On a CPU, XLA gathers and scatters no floats of 16 bits. It would convert the whole table to float32
and back in each step, and a conversion of bits is a copy as well. So a whole table is encoded when
it enters the state and decoded when it leaves it; a step decodes only the rows that it reads.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

_BITS = np.dtype(np.uint16)


def storage_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the array that stores a table of this dtype."""
    return _BITS if dtype.itemsize == _BITS.itemsize else dtype


def encode(values: Float[Array, "..."]) -> Shaped[Array, "..."]:
    """Converts values to their storage dtype."""
    if storage_dtype(values.dtype) == values.dtype:
        return values
    return jax.lax.bitcast_convert_type(values, storage_dtype(values.dtype))


def decode(stored: Shaped[Array, "..."], dtype: np.dtype) -> Float[Array, "..."]:
    """Reverses `encode`.

    Args:
        stored: values in their storage dtype.
        dtype: dtype of the values.
    """
    if stored.dtype == dtype:
        return stored
    return jax.lax.bitcast_convert_type(stored, jnp.dtype(dtype))
