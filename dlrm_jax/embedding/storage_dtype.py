"""How a state holds weights of 16 bits: as the integers that their bits are.

On a CPU, XLA gathers and scatters no floats of 16 bits. It would turn the whole table into float32
and back in each step, and a conversion of bits is a copy as well. So a table is converted when it
comes into the state or leaves it, and in a step only the rows that it reads are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

_BITS = np.dtype(np.uint16)


def held_dtype(dtype: np.dtype) -> np.dtype:
    """Of the array that holds weights of this dtype."""
    return _BITS if dtype.itemsize == _BITS.itemsize else dtype


def hold(weights: Float[Array, "..."]) -> Shaped[Array, "..."]:
    """Weights as they are held."""
    if held_dtype(weights.dtype) == weights.dtype:
        return weights
    return jax.lax.bitcast_convert_type(weights, held_dtype(weights.dtype))


def weights_of(held: Shaped[Array, "..."], dtype: np.dtype) -> Float[Array, "..."]:
    """What `hold` was given.

    Args:
        held: some of what is held.
        dtype: of the weights.
    """
    return held if held.dtype == dtype else jax.lax.bitcast_convert_type(held, jnp.dtype(dtype))
