"""Id maps that have a name, so that a file can say which one a lookup applies to its ids."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FloorDivide:
    """ids // divisor, such as the row of a quotient table.

    Attributes:
        divisor: number of ids that share a row.
    """

    divisor: int

    def __call__(self, ids: Any) -> Any:
        """Maps ids, NumPy's or JAX's."""
        return ids // self.divisor


@dataclasses.dataclass(frozen=True)
class Remainder:
    """ids % divisor, such as the row of a remainder table.

    Attributes:
        divisor: number of rows.
    """

    divisor: int

    def __call__(self, ids: Any) -> Any:
        """Maps ids, NumPy's or JAX's."""
        return ids % self.divisor


Name = Literal["floor_divide", "remainder"]

ID_MAPS: dict[Name, type[FloorDivide] | type[Remainder]] = {
    "floor_divide": FloorDivide,
    "remainder": Remainder,
}
"""The id maps by the names that files give them."""


def note_of(id_map: Any) -> dict[Name, int]:
    """How a file describes an id map, such as ``{"floor_divide": 4}``.

    Raises:
        UserError: it isn't one of `ID_MAPS`.
    """
    for name, kind in ID_MAPS.items():
        if isinstance(id_map, kind):
            return {name: id_map.divisor}
    raise UserError(
        f"id_map: expected one that has a name ({', '.join(ID_MAPS)}), got {id_map!r}, which a "
        f"file can't describe"
    )
