"""How the rows of a table are stored: as numbers of 32 or 16 bits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

_DTYPES = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(jnp.bfloat16)}


def row_bytes(row_format: str, dim: int) -> int:
    """Bytes of a row of so many numbers."""
    return _DTYPES[row_format].itemsize * dim


def encode(rows: Float32[np.ndarray, "n dim"], row_format: str) -> UInt8[np.ndarray, "n bytes"]:
    """Stores rows."""
    return np.ascontiguousarray(rows.astype(_DTYPES[row_format])).view(np.uint8)


def decode(
    stored: UInt8[np.ndarray, "n bytes"], row_format: str, dim: int
) -> Float32[np.ndarray, "n dim"]:
    """Reads stored rows."""
    del dim
    return np.ascontiguousarray(stored).view(_DTYPES[row_format]).astype(np.float32)
