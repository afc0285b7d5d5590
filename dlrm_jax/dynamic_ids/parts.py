"""How the rows of a table are dealt to the parts that its ids are split into.

Rows 0 to ``defaults - 1`` are the defaults of all parts. The others follow part by part. In the map
of a part they have local numbers, behind the same defaults.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Int64, UInt16, UInt64

from dlrm_jax.dynamic_ids.id_hashes import parts_of
from dlrm_jax.dynamic_ids.occupants import damaged
from dlrm_jax.dynamic_ids.policy import DynamicIds

BY_ROW = ("keys", "counts", "last_seen")
"""The arrays of a map that have a number for each row."""

_NUMBERS = 4  # of each part, in the array "numbers"


class RowParts:
    """The rows of a table by part.

    Attributes:
        count: number of parts.
        rows: rows of the table, defaults included.
        seed: seed of all hashes.
        of_table: rules of the table.
        policy: rules of the map of a part.

    Args:
        rows: rows of the table, defaults included.
        policy: rules of the table.
        seed: seed of all hashes.

    Raises:
        UserError: there are too few rows.
    """

    def __init__(self, rows: int, policy: DynamicIds, seed: int):
        policy.check_rows(rows)
        self.count, self.rows, self.seed = policy.parts, rows, seed
        self.of_table, self.policy = policy, dataclasses.replace(policy, parts=1)
        own = rows - policy.defaults
        sizes = np.full(self.count, own // self.count)
        sizes[: own % self.count] += 1
        self._starts = policy.defaults + np.concatenate([[0], np.cumsum(sizes)])

    @property
    def capacity(self) -> int:
        """The number of ids that may have a row in all parts together."""
        return self.rows - self.policy.defaults

    @functools.cached_property
    def _cells(self) -> Int64[np.ndarray, " P1"]:
        """The first cell of each part in the sketches of all, and the end of the last."""
        own = [self.policy.sketch_cells(self.local_rows(part)) for part in range(self.count)]
        return np.concatenate([[0], np.cumsum(own)])

    def local_rows(self, part: int) -> int:
        """The number of rows in the map of a part, defaults included."""
        return self.policy.defaults + int(self._starts[part + 1] - self._starts[part])

    def of(self, keys: UInt64[np.ndarray, " N"]) -> UInt16[np.ndarray, " N"]:
        """The part of each id.

        Args:
            keys: ids.
        """
        return parts_of(keys, self.seed, self.count).astype(np.uint16)

    def order(
        self, keys: UInt64[np.ndarray, " N"]
    ) -> tuple[Int64[np.ndarray, " N"] | None, Int64[np.ndarray, " P"]]:
        """The order that brings ids part by part, as they come, and the number of each part.

        Args:
            keys: ids.

        Returns:
            Places of the ids in that order, None if it is as they come; and the numbers.
        """
        if self.count == 1:
            return None, np.array([len(keys)])
        own = self.of(keys)
        return np.argsort(own, kind="stable"), np.bincount(own, minlength=self.count)

    def in_table(self, part: int, rows: Int32[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
        """The rows of the table that rows of a part are.

        Args:
            part: number of the part.
            rows: rows in the map of the part.
        """
        offset = np.int32(self._starts[part] - self.policy.defaults)
        return rows + offset * (rows >= self.policy.defaults) if offset else rows

    def split(self, arrays: Mapping[str, np.ndarray], part: int) -> dict[str, np.ndarray]:
        """The arrays of the map of a part, of those of the table; see `Occupants.arrays`.

        Args:
            arrays: arrays of the whole table, by row; the sketches and numbers of all parts lie one
                after the other.
            part: number of the part.

        Raises:
            UserError: an array has another size.
        """
        if self.count == 1:
            return dict(arrays)
        sizes = dict.fromkeys(BY_ROW, self.rows) | {"numbers": _NUMBERS * self.count}
        if "sketch" in arrays:
            sizes["sketch"] = int(self._cells[-1])
        for name, size in sizes.items():
            if name in arrays and arrays[name].shape != (size,):
                raise damaged(f"{name}: expected shape ({size},), got {arrays[name].shape}")
        found: dict[str, np.ndarray] = {}
        defaults, (start, end) = self.policy.defaults, self._starts[part : part + 2]
        for name in arrays:
            if name == "numbers":
                found[name] = arrays[name][_NUMBERS * part : _NUMBERS * (part + 1)]
            elif name == "sketch":
                found[name] = arrays[name][self._cells[part] : self._cells[part + 1]]
            else:
                found[name] = np.concatenate([arrays[name][:defaults], arrays[name][start:end]])
        return found

    def joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of the table, of those of all parts; by row, such as those of `split`.

        Args:
            parts: arrays of each part.
        """
        if self.count == 1:
            return dict(parts[0])
        defaults = self.policy.defaults
        return {
            name: np.concatenate(
                [
                    own[name][defaults:]
                    if part and name not in ("numbers", "sketch")
                    else own[name]
                    for part, own in enumerate(parts)
                ]
            )
            for name in parts[0]
        }
