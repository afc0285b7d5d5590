"""The native search for the best items of queries."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from dlrm_jax.native import library
from dlrm_jax.native.thread_count import most_threads

BLOCK = 32
"""Items of a block of vectors, and bits of a word of their Bloom filters."""


class Index(ctypes.Structure):
    """Items, as ``Index`` of item_scan.cc; a wrong number or address reads anywhere."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "vectors", "scales", "numbers", "bits", "attributes", "starts",
        )),
        *((name, ctypes.c_int64) for name in (
            "groups", "bloom_bits", "attribute_columns", "cells",
        )),
    ]  # fmt: skip


class Queries(ctypes.Structure):
    """Queries and where their answers go, as ``Queries`` of item_scan.cc."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "numbers", "probes", "filters", "filter_starts", "clauses", "values", "positions",
        )),
        *((name, ctypes.c_int64) for name in ("count", "cells_each", "hashes", "best")),
        *((name, ctypes.c_void_p) for name in ("found", "scores")),
    ]  # fmt: skip


def address(array: np.ndarray | None) -> int | None:
    """The address of an array's first number; it must be contiguous and stay alive."""
    if array is None:
        return None
    assert array.flags.c_contiguous
    return array.__array_interface__["data"][0]  # much quicker than its ctypes


def find(index: Index, queries: Queries, threads: int | None) -> None:
    """Finds the best items; Python's other threads run meanwhile.

    Args:
        index: items.
        queries: queries, and the arrays that get the answers.
        threads: most threads to use, this one included; a small search uses one. None for one on
            each processor.
    """
    _function()(ctypes.byref(index), ctypes.byref(queries), most_threads(threads))


def _function() -> Any:
    function = library.functions().DlrmJaxFindItems
    if function.argtypes is None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = None
    return function
