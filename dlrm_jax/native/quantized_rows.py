"""The native encoding of rows as integers with scale and bias."""

from __future__ import annotations

import ctypes

import numpy as np
from jaxtyping import Float32, UInt8

from dlrm_jax.native import library
from dlrm_jax.native.thread_count import processors


def available() -> bool:
    """Whether the library is built."""
    return library.load()


def quantize(rows: Float32[np.ndarray, "n d"], bits: int) -> UInt8[np.ndarray, "n b"]:
    """Stored rows, the bytes of `dlrm_jax.artifact.row_quantization.quantize`.

    Args:
        rows: finite numbers that are within float16's range, d at least 1.
        bits: 8 or 4.
    """
    rows = np.ascontiguousarray(rows)
    count, dim = rows.shape
    stored = np.empty((count, 4 + (dim * bits + 7) // 8), np.uint8)
    function = library.functions().DlrmJaxQuantizeRows
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
    ]
    function.restype = None
    threads = processors()
    function(rows.ctypes.data, count, dim, bits, stored.ctypes.data, stored.shape[1], threads)
    return stored
