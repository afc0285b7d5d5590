"""Ids that lie in several arrays, read as if they were one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int32, Integer, Shaped

from dlrm_jax.errors import UserError


class HStacked:
    """What `np.hstack` would give, without copying it: arrays side by side.

    Slices stay views of the parts; `take` and `np.asarray` make arrays.

    Args:
        parts: Int32 or int64 [N, L] each, in row-major order; memory maps that may be unaligned.
            Values must fit into int32; they aren't looked at here.

    Attributes:
        parts: The same.
        shape: (N, C), C being the sum of the widths L.
        dtype: int32, whatever the parts have.
        ndim: 2.

    Raises:
        UserError: If there is no part, or the parts can't stand side by side.
    """

    dtype, ndim = np.dtype(np.int32), 2

    def __init__(self, parts: Sequence[np.ndarray]):
        for number, part in enumerate(parts):
            if (
                part.dtype not in (np.int32, np.int64)
                or part.ndim != 2
                or not part.flags.c_contiguous
            ):
                raise UserError(
                    f"ids must be int32 or int64 arrays with 2 axes in row-major order, got "
                    f"{part.dtype} of shape {part.shape} and strides {part.strides} in array "
                    f"{number} (from 0)."
                )
            if len(part) != len(parts[0]):
                raise UserError(
                    f"ids that belong together need arrays of the same length, got "
                    f"{len(parts[0])} rows in the first and {len(part)} in array {number} (from 0)."
                )
        if not parts:
            raise UserError("ids need at least one array, got none.")
        # A plain view: gathering from np.memmap objects costs Python calls for every result.
        self.parts = tuple(np.asarray(part) for part in parts)
        self.shape = (len(parts[0]), sum(part.shape[1] for part in parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> HStacked:
        """These rows, which follow one another, without a copy."""
        return HStacked([part[rows] for part in self.parts])

    def take(
        self, rows: Integer[np.ndarray, " n"], axis: Literal[0] = 0
    ) -> Int32[np.ndarray, "n C"]:
        """The rows of these numbers, in this order, as one array in memory."""
        return _joined([_taken(part, rows) for part in self.parts])

    def __array__(
        self, dtype: np.dtype | None = None, copy: bool | None = None
    ) -> Shaped[np.ndarray, "N C"]:
        if copy is False:
            raise ValueError("arrays side by side become one by a copy only")
        return _joined(self.parts).astype(dtype or self.dtype, copy=False)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts, axis=1, dtype=np.int32, casting="same_kind")


def _taken(part: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # NumPy would copy the whole of an unaligned array first. Bytes are always aligned.
    return part.view(np.uint8).take(rows, axis=0).view(part.dtype)
