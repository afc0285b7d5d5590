"""The native lookup of stored rows."""

from __future__ import annotations

import ctypes

import numpy as np
from jaxtyping import Float32, Int, Shaped

from dlrm_jax.native import library
from dlrm_jax.native.thread_count import most_threads

LOOKUP = np.dtype(
    [
        ("table", np.uint64),
        *(
            (name, np.int64)
            for name in (
                "rows",
                "row_bytes",
                "dim",
                "format",
                "pooling",
                "first_id",
                "length",
                "first_out",
                "divisor",
                "modulus",
            )
        ),
    ]
)
"""A lookup: address of the table, and what ``Lookup`` of stored_rows.cc says.

Nothing is checked: a wrong number reads or writes anywhere.
"""

FORMATS = ("float32", "bfloat16", "int8", "int4")
POOLINGS = ("sum", "mean", "none")
"""Row formats and poolings by their number."""

_INTEGER, _POINTER = ctypes.c_int64, ctypes.c_void_p
_ARGUMENTS = [_POINTER, _INTEGER, _POINTER, _INTEGER, _POINTER, _POINTER, *[_INTEGER] * 4]


def pool(
    lookups: Shaped[np.ndarray, " F"],
    ids: Int[np.ndarray, "n C"],
    weights: Float32[np.ndarray, "n C"] | None,
    out: Float32[np.ndarray, "n W"],
    threads: int,
) -> tuple[int, int] | None:
    """Pools into ``out``; Python's other threads run meanwhile.

    Args:
        lookups: lookups, of dtype `LOOKUP`.
        ids: ids, contiguous, int32 or int64; negative is absent, and so is one out of range.
        weights: weights of the ids, contiguous; None for ones.
        out: result, contiguous.
        threads: most threads to use, this one included.

    Returns:
        None, or sample and lookup of the first bag with an id out of range.
    """
    wrong = _function()(
        lookups.ctypes.data,
        len(lookups),
        ids.ctypes.data,
        ids.itemsize,
        None if weights is None else weights.ctypes.data,
        out.ctypes.data,
        *ids.shape,
        out.shape[1],
        most_threads(threads),
    )
    return None if wrong < 0 else divmod(wrong, len(lookups))


def _function():
    function = library.functions().DlrmJaxPoolStoredRows
    if function.argtypes is None:
        function.argtypes, function.restype = _ARGUMENTS, _INTEGER
    return function
