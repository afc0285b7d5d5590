"""Id maps that have a name, so that a file can say which one a lookup applies to its ids."""

from __future__ import annotations

import dataclasses
from typing import Any


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


ID_MAPS = {"floor_divide": FloorDivide, "remainder": Remainder}
"""The id maps by the names that files give them."""
