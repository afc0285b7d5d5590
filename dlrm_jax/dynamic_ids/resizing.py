"""Maps from ids to rows for tables that get more rows, fewer, or other parts, between two runs.

With more rows, ids keep theirs. With fewer, ids lose their rows in the order of eviction until the
others have room; those of them in rows that aren't there any more move to the lowest free ones. Of
a map in parts, this holds for each part. With another number of parts, ids are dealt rows anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8

from dlrm_jax.dynamic_ids.eviction import in_order
from dlrm_jax.dynamic_ids.parts import BY_ROW, RowParts
from dlrm_jax.dynamic_ids.policy import DynamicIds

_BLOCK = 64  # cells of the sketch among which those of an id lie

Arrays = Mapping[str, np.ndarray]
"""Arrays of a map by name, see `Occupants.arrays`."""


class Resized(NamedTuple):
    """A map for a table of another number of rows, or in another number of parts.

    Attributes:
        arrays: arrays of the map.
        source: row before of each of the first rows. Further rows are new and have no id. In parts,
            these are all rows, and those that have no id may be any one from before.
        lost: number of ids that have lost their rows.
    """

    arrays: dict[str, np.ndarray]
    source: Int32[np.ndarray, " first"]
    lost: int


def resized(policy: DynamicIds, arrays: Arrays, rows: int, parts_before: int = 0) -> Resized:
    """The map of a table that gets another number of rows, or of parts.

    Args:
        policy: rules of the new map.
        arrays: arrays of the map, which stay as they are.
        rows: number of rows that the table gets, defaults included.
        parts_before: number of parts of the map before; 0 for as many.

    Raises:
        UserError: there are too few rows for the policy.
    """
    parts_before = parts_before or policy.parts
    if parts_before == policy.parts == 1:
        return _resized(policy, arrays, rows)
    seed = int(arrays["numbers"][3])
    before = RowParts(len(arrays["keys"]), dataclasses.replace(policy, parts=parts_before), seed)
    after = RowParts(rows, policy, seed)
    parts = [before.split(arrays, part) for part in range(before.count)]
    if before.count == after.count:
        changes = []
        for part, own in enumerate(parts):
            change = _resized(after.policy, own, after.local_rows(part))
            changes.append(change._replace(source=before.in_table(part, change.source)))
    else:
        changes = [*_dealt_anew(before, after, arrays, parts)]
    defaults = policy.defaults
    source = [np.arange(defaults, dtype=np.int32)]
    for part, change in enumerate(changes):
        own = np.zeros(after.local_rows(part), np.int32)
        own[: len(change.source)] = change.source
        source.append(own[defaults:])
    joined = after.joined([change.arrays for change in changes])
    return Resized(joined, np.concatenate(source), sum(change.lost for change in changes))


def _dealt_anew(
    before: RowParts, after: RowParts, arrays: Arrays, parts: Sequence[Arrays]
) -> Iterator[Resized]:
    """The maps of parts that ids go to from other ones, with rows in the order of those before."""
    policy, clock = after.policy, int(arrays["numbers"][0])
    alive = np.flatnonzero(arrays["counts"]).astype(np.int32)
    part_of = after.of(arrays["keys"][alive])
    swept = min(int(own["numbers"][1]) for own in parts)
    additions = sum(int(own["numbers"][2]) for own in parts) // after.count
    for part in range(after.count):
        rows, own = after.local_rows(part), alive[part_of == part]
        lacking = max(0, len(own) - (rows - policy.defaults))
        if lacking:
            counts, last_seen = (arrays[name][own] for name in ("counts", "last_seen"))
            lost = in_order(policy, own, counts, last_seen, clock)[:lacking]
            own = np.setdiff1d(own, lost)
        source = np.zeros(policy.defaults + len(own), np.int32)
        source[policy.defaults :] = own
        made = {"numbers": np.array([clock, swept, additions, after.seed], np.int64)}
        for name in BY_ROW:
            made[name] = np.zeros(rows, arrays[name].dtype)
            made[name][policy.defaults : len(source)] = arrays[name][own]
        if "sketch" in arrays and (cells := policy.sketch_cells(rows)):
            # An id may have been counted in any part before.
            made["sketch"] = np.maximum.reduce(
                [_resized_sketch(own["sketch"], cells) for own in parts]
            )
        yield Resized(made, source, lacking)


def rows_needed(policy: DynamicIds, arrays: Arrays) -> int:
    """The smallest number of rows with which no id loses its own.

    Args:
        policy: rules of the map.
        arrays: arrays of the map.
    """
    alive = arrays["keys"][arrays["counts"] > 0]
    parts = RowParts(len(arrays["keys"]), policy, int(arrays["numbers"][3]))
    most = np.bincount(parts.of(alive), minlength=policy.parts).max()
    return policy.defaults + policy.parts * max(1, int(most))


def _resized(policy: DynamicIds, arrays: Arrays, rows: int) -> Resized:
    """The map of another number of rows that isn't in parts."""
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
