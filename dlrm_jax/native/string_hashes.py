"""The native hashes of strings."""

from __future__ import annotations

import ctypes

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from dlrm_jax.native import library
from dlrm_jax.native.thread_count import processors

_INTEGER, _POINTER = ctypes.c_int64, ctypes.c_void_p


def available() -> bool:
    """Whether the library is built, after it has been built if it can be."""
    return library.load()


def hash_strings(
    data: UInt8[np.ndarray, " n"], offsets: Int64[np.ndarray, " _"]
) -> UInt64[np.ndarray, " _"]:
    """XXH64 of each string, on all processors; `dlrm_jax.dynamic_ids.hashing`.

    Args:
        data: bytes of all strings, contiguous.
        offsets: first byte of each string, and the end of the last one, contiguous. Nothing is
            checked.
    """
    hashes = np.empty(len(offsets) - 1, np.uint64)
    function = library.functions().DlrmJaxHashStrings
    function.argtypes = [_POINTER, _POINTER, _INTEGER, _POINTER, _INTEGER]
    function.restype = None
    function(data.ctypes.data, offsets.ctypes.data, len(hashes), hashes.ctypes.data, processors())
    return hashes
