"""The native changes of maps from ids to rows; `dlrm_jax.dynamic_ids` says what they are."""

from __future__ import annotations

import ctypes

import numpy as np
from jaxtyping import Int32, Shaped, UInt64

from dlrm_jax.native import library
from dlrm_jax.native.thread_count import most_threads


def _fields(integers: str, kind: type[np.generic] = np.int64) -> list[tuple[str, type]]:
    return [(name, kind) for name in integers.split()]


MAP = np.dtype(
    [
        *_fields("rows index sketch", np.uint64),
        *_fields("row_count slots blocks defaults live lowest_free additions batch"),
        *_fields("admit_count eviction evicted_at_once"),
        ("admit_probability", np.float64),
        *_fields("slot_salt sketch_salt default_salt draw_salt", np.uint64),
    ]
)
"""A map: addresses of its arrays, and what ``Map`` of id_map.h says. Nothing is checked."""

REQUEST = np.dtype(
    [
        *_fields("map keys rows", np.uint64),
        *_fields("count now"),
        *_fields("fresh changed before cells cells_before", np.uint64),
        *_fields("fresh_count changed_count cell_count needed"),
    ]
)
"""A batch of one map: addresses of its arrays, which must be large enough, and results.

``fresh`` needs ``count`` places, ``changed`` and ``before`` as many and one for each id that may be
evicted, ``cells`` and ``cells_before`` four for each id.
"""

_INTEGER, _POINTER = ctypes.c_int64, ctypes.c_void_p
_ARGUMENTS = {
    "DlrmJaxTranslateIds": [_POINTER, _INTEGER, _INTEGER],
    "DlrmJaxFindIds": [_POINTER, _POINTER, _INTEGER, _POINTER, _INTEGER],
    "DlrmJaxIndexIds": [_POINTER],
    "DlrmJaxFreeRows": [_POINTER, _POINTER, _INTEGER],
    "DlrmJaxRestoreRows": [_POINTER, _POINTER, _POINTER, _INTEGER],
}


def available() -> bool:
    """Whether the library is built, after it has been built if it can be."""
    return library.load()


def translate(requests: Shaped[np.ndarray, " M"], threads: int | None = None) -> None:
    """Changes several maps by a batch each, side by side.

    Args:
        requests: batches, [M] of `REQUEST`; no two of the same map.
        threads: most threads to use, this one included; None for one on each processor.
    """
    _call("DlrmJaxTranslateIds")(requests.ctypes.data, len(requests), most_threads(threads))


def find(
    of: Shaped[np.ndarray, ""], keys: UInt64[np.ndarray, " N"], threads: int | None = None
) -> Int32[np.ndarray, " N"]:
    """The rows of ids, and default rows of those without.

    Args:
        of: map, a `MAP`.
        keys: ids, contiguous.
        threads: most threads to use, this one included; None for one on each processor.
    """
    rows = np.empty(len(keys), np.int32)
    call = _call("DlrmJaxFindIds")
    call(of.ctypes.data, keys.ctypes.data, len(keys), rows.ctypes.data, most_threads(threads))
    return rows


def index(of: Shaped[np.ndarray, ""]) -> None:
    """Makes the index of a map from its rows.

    Args:
        of: map, a `MAP`.
    """
    _call("DlrmJaxIndexIds")(of.ctypes.data)


def free(of: Shaped[np.ndarray, ""], rows: Int32[np.ndarray, " n"]) -> None:
    """Takes the ids of rows away.

    Args:
        of: map, a `MAP`.
        rows: rows that have ids, contiguous.
    """
    _call("DlrmJaxFreeRows")(of.ctypes.data, rows.ctypes.data, len(rows))


def restore(
    of: Shaped[np.ndarray, ""],
    rows: Int32[np.ndarray, " E"],
    before: Shaped[np.ndarray, " E"],
) -> None:
    """Takes changes of rows back, the last one first; live rows aren't counted.

    Args:
        of: map, a `MAP`.
        rows: rows that changed, contiguous.
        before: occupants before, contiguous.
    """
    _call("DlrmJaxRestoreRows")(of.ctypes.data, rows.ctypes.data, before.ctypes.data, len(rows))


def _call(name: str):
    function = getattr(library.functions(), name)
    if function.argtypes is None:
        function.argtypes, function.restype = _ARGUMENTS[name], None
    return function
