"""A map from ids to rows of a table in parts, of which a process has some or all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from dlrm_jax.dynamic_ids.id_map import IdMap, as_keys
from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.dynamic_ids.occupants import Undo, damaged
from dlrm_jax.dynamic_ids.parts import RowParts
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError

PartArrays = Mapping[int, Mapping[str, np.ndarray]]
"""Arrays of the maps of parts, by the number of the part."""


class PartedMap:
    """The map of a table: an `IdMap` for each part that this process has.

    Attributes:
        rows: rows of the table by part.
        parts: maps of the parts that are here, by number.

    Args:
        rows: rows of the table by part.
        parts: maps of parts.
        name: name of the table, for messages.
    """

    def __init__(self, rows: RowParts, parts: dict[int, IdMap], name: str):
        self.rows, self.parts, self._name = rows, parts, name

    @classmethod
    def new(
        cls, rows: RowParts, name: str, owned: Callable[[int], bool] = lambda part: True
    ) -> PartedMap:
        """A map in which no id has a row.

        Args:
            rows: rows of the table by part.
            name: name of the table, for messages.
            owned: whether a part is here.
        """
        parts = {
            part: IdMap(rows.local_rows(part), rows.policy, rows.seed, _title(name, rows, part))
            for part in range(rows.count)
            if owned(part)
        }
        return cls(rows, parts, name)

    @classmethod
    def from_arrays(
        cls,
        policy: DynamicIds,
        arrays: Mapping[str, np.ndarray],
        name: str = "ids",
        owned: Callable[[int], bool] = lambda part: True,
    ) -> PartedMap:
        """The map that `IdMaps.arrays` gave.

        Args:
            policy: rules of that map.
            arrays: arrays of the whole table.
            name: name of the table, for messages.
            owned: whether a part is here.

        Raises:
            UserError: an array is missing, has another dtype or shape, or contradicts another.
        """
        for key in ("keys", "numbers"):
            if key not in arrays:
                raise damaged(f"there is no array {key}")
        seed = int(arrays["numbers"][3]) if len(arrays["numbers"]) > 3 else 0
        rows = RowParts(len(arrays["keys"]), policy, seed)
        return cls.of_parts(
            rows, {p: rows.split(arrays, p) for p in range(rows.count) if owned(p)}, name
        )

    @classmethod
    def of_parts(cls, rows: RowParts, arrays: PartArrays, name: str) -> PartedMap:
        """The map of parts that `arrays` gave.

        Args:
            rows: rows of the table by part.
            arrays: arrays of each part.
            name: name of the table, for messages.

        Raises:
            UserError: see `from_arrays`.
        """
        parts = {}
        for part, own in arrays.items():
            made = IdMap.from_arrays(rows.policy, own, _title(name, rows, part))
            keys = made.keys()
            if rows.count > 1 and (rows.of(keys.keys[keys.live]) != part).any():
                raise damaged(f"part {part} has ids of another part")
            parts[part] = made
        return cls(rows, parts, name)

    @property
    def live(self) -> int:
        """The number of ids that have a row in the parts that are here."""
        return sum(own.live for own in self.parts.values())

    @property
    def capacity(self) -> int:
        """The number of ids that may have a row in the parts that are here."""
        return sum(own.capacity for own in self.parts.values())

    def split(
        self, keys: UInt64[np.ndarray, " N"]
    ) -> tuple[Int64[np.ndarray, " N"] | None, list[UInt64[np.ndarray, " _"]]]:
        """The ids of each part, in their order.

        Args:
            keys: ids.

        Returns:
            Places of the ids of all parts, one part after the other, None if they are as they come;
            and the ids of each part.
        """
        order, counts = self.rows.order(keys)
        return order, np.split(keys if order is None else keys[order], np.cumsum(counts)[:-1])

    def find(self, ids: Any) -> Int32[np.ndarray, " N"]:
        """The rows of ids as they are, see `IdMap.find`; all parts must be here.

        Args:
            ids: integers of 64 bits or less, [N].

        Raises:
            UserError: ids are no integers, [N].
        """
        assert len(self.parts) == self.rows.count
        order, keys = self.split(as_keys(ids, f"table {self._name}: ids"))
        return merged(order, [self.find_in(part, own) for part, own in enumerate(keys)])

    def find_in(self, part: int, keys: UInt64[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
        """The rows of the table that ids of a part have.

        Args:
            part: number of the part, which is here.
            keys: ids of the part.
        """
        return self.rows.in_table(part, self.parts[part].find(keys))

    def arrays(self, undone: Mapping[int, Sequence[Undo]]) -> dict[int, dict[str, np.ndarray]]:
        """Copies of all that the parts are which are here.

        Args:
            undone: records of the last batches of each part, the latest last, which the copies are
                without; none for a part that isn't named.
        """
        return {part: own.arrays(undone.get(part, ())) for part, own in self.parts.items()}

    def keys(self, undone: Mapping[int, Sequence[Undo]]) -> dict[int, Keys]:
        """Copies of the ids of the rows of the parts that are here, see `arrays`."""
        return {part: own.keys(undone.get(part, ())) for part, own in self.parts.items()}

    def whole_keys(self) -> Keys:
        """Copies of the ids of the rows of the table; all parts must be here."""
        own = self.keys({})
        return Keys(**self.rows.joined([own[x]._asdict() for x in range(self.rows.count)]))

    def copy(self, undone: Mapping[int, Sequence[Undo]]) -> PartedMap:
        """A copy that doesn't change with this map, see `arrays`."""
        return PartedMap.of_parts(self.rows, self.arrays(undone), self._name)


def loaded_map(
    name: str,
    rows: RowParts,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    owned: Callable[[int], bool],
) -> PartedMap:
    """The map of a table, of arrays of many.

    Args:
        name: name of the map.
        rows: rows of the table by part; the seed is that of the arrays.
        arrays: arrays of each map, of whole tables.
        owned: whether a part is here.

    Raises:
        UserError: there is no such map, or one of other rows, or it contradicts itself.
    """
    if name not in arrays:
        raise UserError(f"ids of table {name}: expected a map, there is none")
    if (found := len(arrays[name].get("keys", ()))) != rows.rows:
        raise UserError(
            f"ids of table {name}: expected a map of {rows.rows} rows, got one of {found}; give "
            f"the table as many rows"
        )
    try:
        return PartedMap.from_arrays(rows.of_table, arrays[name], name, owned)
    except UserError as error:
        raise UserError(f"ids of table {name}: {error}") from error


def merged(
    order: Int64[np.ndarray, " N"] | None, rows: Sequence[Int32[np.ndarray, " _"]]
) -> Int32[np.ndarray, " N"]:
    """The rows of ids in the order in which they came.

    Args:
        order: places of the ids, see `PartedMap.split`.
        rows: rows of the ids of each part.
    """
    if order is None:
        return rows[0]
    found = np.empty(len(order), np.int32)
    found[order] = np.concatenate(rows)
    return found


def _title(name: str, rows: RowParts, part: int) -> str:
    return f"{name}, part {part} of {rows.count}" if rows.count > 1 else name
