"""Reads the groups of devices of a collective from a compiled program's text."""

from __future__ import annotations

import math
import re

import numpy as np

Groups = tuple[tuple[int, ...], ...]
"""The devices of each group, by their numbers in the mesh."""

_ATTRIBUTE = re.compile(
    r"replica_groups=(\{\}|\{\{.*?\}\}|\[.*?\]<=\S+?(?=,? |$)|mesh\[.*?\}(?=,|$))"
)
_LISTED = re.compile(r"\{([\d,]+)\}")
_RESHAPED = re.compile(r"\[([\d,]+)\]<=(.*)")
_MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\((.*)\))? \{('\w+'(?:, ?'\w+')*)\}")
_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")


def read_groups(attributes: str, devices: int) -> Groups:
    """Reads the groups of a collective.

    The text is a list, ``{{0,1},{2,3}}``, all devices, ``{}``, rows of an array of all numbers,
    ``[2,2]<=[4]``, or axes of a mesh, ``mesh['x'=2,'y'=2] {'y'}``.

    Raises:
        ValueError: the groups have another form.
    """
    found = _ATTRIBUTE.search(attributes)
    text = found[1] if found else ""
    if text == "{}":
        return (tuple(range(devices)),)
    if text.startswith("{"):
        return tuple(_numbers(group) for group in _LISTED.findall(text))
    if found := _RESHAPED.fullmatch(text):
        groups = _ordered(found[2]).reshape(_numbers(found[1]))
    elif found := _MESH.fullmatch(text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        order = _ordered(found[2]) if found[2] else np.arange(devices)
        together = re.findall(r"\w+", found[3])
        axes = [list(sizes).index(axis) for axis in together]
        grid = np.moveaxis(order.reshape(list(sizes.values())), axes, range(-len(axes), 0))
        groups = grid.reshape(-1, math.prod(sizes[axis] for axis in together))
    else:
        raise ValueError(f"expected groups of devices, got {attributes}")
    return tuple(tuple(group) for group in groups.tolist())


def _ordered(text: str) -> np.ndarray:
    """Reads ``[2,4]T(1,0)``, the numbers from 0 as an array, transposed; or a list of numbers."""
    found = _ORDER.fullmatch(text)
    if found is None:
        return np.array(_numbers(text))
    shape = _numbers(found[1])
    order = _numbers(found[2]) if found[2] else range(len(shape))
    return np.arange(math.prod(shape)).reshape(shape).transpose(*order).reshape(-1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
