"""The native encoding of rows as integers with scale and bias."""

from __future__ import annotations

import ctypes
import os

import numpy as np
from jaxtyping import Float32, UInt8

from dlrm_jax.native import library


def available() -> bool:
    """Whether the library is built."""
    return library.load()


def threads() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    function(rows.ctypes.data, count, dim, bits, stored.ctypes.data, stored.shape[1], threads())
    return stored
