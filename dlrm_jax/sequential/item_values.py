"""The values of the items in the log, and their numbers in the table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from dlrm_jax.errors import UserError, shown


def plain_values(values: pl.Series) -> pl.Series:
    """Values of items as a saved model has them: integers, floats or strings.

    Args:
        values: values of the log.

    Raises:
        UserError: they are something else, such as dates.
    """
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if not (values.dtype.is_integer() or values.dtype.is_float() or values.dtype == pl.String):
        raise UserError(
            f"column of items: expected integers, floats or strings, which requests can name, got "
            f"{values.dtype}; convert it"
        )
    return values


class ItemValues:
    """The values of V items, in the order of the table's rows.

    Args:
        values: integers, floats or strings, each once, [V].
    """

    def __init__(self, values: pl.Series):
        self.values = values
        self._numbers = {value: number for number, value in enumerate(values.to_list())}
        self._is_text, self._is_narrow = values.dtype == pl.String, values.dtype == pl.Float32
        # As the log shows them: 0.1, not the 64 bits of the float32 that is nearest to it.
        shown_as = [float(str(x)) for x in values.to_numpy()] if self._is_narrow else values
        self._of_number = list(shown_as)

    def __len__(self) -> int:
        return len(self._of_number)

    def numbers(self, values: Iterable[Any]) -> Int[np.ndarray, " n"]:
        """The number of each value, [n]; -1 for one that the log didn't have.

        Args:
            values: values of one history.

        Raises:
            UserError: one is missing, or no string where those of the log are, or no number.
        """
        found = []
        for value in values:
            is_fit = isinstance(value, str if self._is_text else int | float | np.number)
            if not is_fit or isinstance(value, bool):
                kind = "strings" if self._is_text else "numbers"
                raise UserError(
                    f"history: expected {kind}, as the items of the log are, got {shown(value)} at "
                    f"place {len(found)}"
                )
            if self._is_narrow and isinstance(value, float | np.floating):
                with np.errstate(over="ignore"):
                    narrow = float(np.float32(value))
                value = value if np.isinf(narrow) else narrow
            found.append(self._numbers.get(value, -1))
        return np.asarray(found, np.int64)

    def decoded(self, numbers: Int[np.ndarray, " n"]) -> list[Any]:
        """The values of some numbers."""
        return [self._of_number[number] for number in numbers]
