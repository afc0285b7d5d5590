"""The parts that the metadata of a checkpoint must have, and what each of them must be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any

import jax.numpy as jnp
import numpy as np

_CHECKSUM = re.compile(r"(\w+) [0-9a-f]{16}")
"""Dtype and checksum of an array."""


def _has_all(kind: type | UnionType) -> Callable[[Any], bool]:
    """A check that a value is a dict whose values are of a kind."""
    return lambda value: (
        isinstance(value, dict) and all(isinstance(each, kind) for each in value.values())
    )


def _are_arrays(value: Any) -> bool:
    # An item is a number: a path would lead elsewhere.
    return _has_all(dict)(value) and all(
        isinstance(item := each.get("item"), str)
        and item.isdecimal()
        and _is_shape(each.get("shape"))
        for each in value.values()
    )


def _is_start(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("source"), str)
        and isinstance(names := value.get("names"), list)
        and all(isinstance(name, str) for name in names)
    )


def _is_continuation(value: Any) -> bool:
    return (
        _has_all(object)(value)
        and value.keys() - {"factor"} == {"source", "checkpoint", "step", "cuts", "before"}
        and _is_share(value.get("factor", 1))  # earlier versions noted none
        and all(isinstance(value[x], str) for x in ("source", "checkpoint"))
        and all(type(value[x]) is int and 0 <= value[x] < 2**31 for x in ("step", "cuts"))
        and _has_all(dict)(value["before"])
        and all(_has_all(int | float | None)(each) for each in value["before"].values())
    )


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(type(size) is int and size >= 0 for size in value)
        and math.prod(value) < 2**48  # far more than any memory holds
    )


def _is_improvement(value: Any) -> bool:
    counts = ("since_best", "since_cut", "cuts")
    return (
        _has_all(object)(value)
        and value.keys() - {"factor"} == {"metric", "best", *counts}
        and _is_share(value.get("factor", 1))  # earlier versions noted none
        and isinstance(value["metric"], str)
        and isinstance(value["best"], float | int | None)
        and all(type(value[x]) is int and 0 <= value[x] < 2**31 for x in counts)
    )


def _is_speed(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_checksums(value: Any) -> bool:
    if not _has_all(str)(value):
        return False
    found = [_CHECKSUM.fullmatch(text) for text in value.values()]
    return all(each and _is_dtype(each[1]) for each in found)


def _is_share(value: Any) -> bool:
    return isinstance(value, float | int) and 0 < value <= 1


def _is_dtype(name: str) -> bool:
    try:
        dtype = np.dtype(name)
    except TypeError:
        return False
    return dtype == np.bool or jnp.issubdtype(dtype, jnp.number)


# Parts of the metadata, and what they must be; `...` is a part that isn't there.
_PARTS: Mapping[str, Callable[[Any], bool]] = {
    "step": lambda value: isinstance(value, int),
    "identity": _has_all(object),
    "validation": lambda value: value is None or _has_all(int | float | None)(value),
    "improvement": lambda value: value is ... or _is_improvement(value),
    "examples_per_second": lambda value: value in (..., None) or _is_speed(value),
    "config": lambda value: value in (..., None) or _has_all(object)(value),
    "config_version": lambda value: value is ... or isinstance(value, int),
    "params": _has_all(list),
    "model_state": lambda value: value is ... or _has_all(list)(value),
    "arrays": _are_arrays,
    "checksums": lambda value: value is ... or _are_checksums(value),  # earlier versions: none
    "files": lambda value: value is ... or _has_all(int)(value),
    "hashes": lambda value: value is ... or _has_all(str)(value),
    "warm_start": lambda value: value in (..., None) or _is_start(value),
    "continue_from": lambda value: value in (..., None) or _is_continuation(value),
    "stream": lambda value: (
        value is ... or (_has_all(object)(value) and _has_all(object)(value.get("schema", {})))
    ),
    "kept_negatives": lambda value: (
        value is ... or (type(value) in (int, float) and 0 < value <= 1)
    ),
}


def invalid_parts(metadata: Mapping[str, Any]) -> list[str]:
    """The names of the parts that are missing or aren't what they must be.

    Args:
        metadata: metadata as JSON has them.
    """
    return [name for name, is_valid in _PARTS.items() if not is_valid(metadata.get(name, ...))]
