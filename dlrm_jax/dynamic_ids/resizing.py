"""Maps from ids to rows for tables that get more rows or fewer, between two runs.

With more rows, ids keep theirs. With fewer, ids lose their rows in the order of eviction until the
others have room; those of them in rows that aren't there any more move to the lowest free ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8

from dlrm_jax.dynamic_ids.eviction import in_order
from dlrm_jax.dynamic_ids.policy import DynamicIds

BY_ROW = ("keys", "counts", "last_seen")
"""The arrays of a map that have a number for each row."""

_BLOCK = 64  # cells of the sketch among which those of an id lie

Arrays = Mapping[str, np.ndarray]
"""Arrays of a map by name, see `Occupants.arrays`."""


class Resized(NamedTuple):
    """A map for a table of another number of rows.

    Attributes:
        arrays: arrays of the map.
        source: row before of each of the first rows, [the smaller number of rows]; further rows
            are new and have no id.
        lost: number of ids that have lost their rows.
    """

    arrays: dict[str, np.ndarray]
    source: Int32[np.ndarray, " first"]
    lost: int


def resized(policy: DynamicIds, arrays: Arrays, rows: int) -> Resized:
    """The map of a table that gets another number of rows.

    Args:
        policy: rules of the map.
        arrays: arrays of the map, which stay as they are.
        rows: number of rows that the table gets, defaults included.

    Raises:
        UserError: there are too few rows for the policy.
    """
    policy.check_rows(rows)
    alive = np.flatnonzero(arrays["counts"]).astype(np.int32)
    lacking = max(0, len(alive) - (rows - policy.defaults))
    if lacking:
        counts, last_seen = (arrays[name][alive] for name in ("counts", "last_seen"))
        lost = in_order(policy, alive, counts, last_seen, int(arrays["numbers"][0]))[:lacking]
        arrays = without(arrays, lost)
    first = min(len(arrays["keys"]), rows)
    source = np.arange(first, dtype=np.int32)
    behind = first + np.flatnonzero(arrays["counts"][first:])
    free = np.flatnonzero(arrays["counts"][:first] == 0)
    source[free[free >= policy.defaults][: len(behind)]] = behind
    made = dict(arrays)
    for name in BY_ROW:
        made[name] = np.zeros(rows, arrays[name].dtype)
        made[name][:first] = arrays[name][source]
    if "sketch" in arrays and (cells := policy.sketch_cells(rows)):
        made["sketch"] = _resized_sketch(arrays["sketch"], cells)
    return Resized(made, source, lacking)


def without(arrays: Arrays, rows: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """A map in which the ids of some rows have lost them.

    Args:
        arrays: arrays of the map, which stay as they are.
        rows: rows whose ids lose them.
    """
    made = dict(arrays)
    for name in BY_ROW:
        made[name] = arrays[name].copy()
        made[name][rows] = 0
    return made


def _resized_sketch(sketch: UInt8[np.ndarray, " C"], cells: int) -> UInt8[np.ndarray, " D"]:
    """The sketch with other blocks; no count is lower than before.

    A hash is scaled to the number of blocks, so those of one block come from neighbouring ones.
    """
    before, after = len(sketch) // _BLOCK, cells // _BLOCK
    blocks = np.zeros((before + 1, _BLOCK), np.uint8)  # one more, where the last range ends
    blocks[:before] = sketch.reshape(before, _BLOCK)
    number = np.arange(after)
    bounds = np.stack([number * before // after, -(-(number + 1) * before // after)], axis=1)
    return np.maximum.reduceat(blocks, bounds.ravel())[::2].ravel()
