"""Ids in several arrays, read as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int32, Integer, Shaped

from dlrm_jax.errors import UserError


class HStacked:
    """Arrays side by side, as `np.hstack` would join them, without a copy.

    Slices are views of the parts; `take` and `np.asarray` copy.

    Args:
        parts: ids, int32 or int64 [N, L] each, in row-major order; memory maps may be unaligned.
            Values must fit into int32, which isn't checked here.

    Attributes:
        parts: the same arrays.
        shape: (N, C), where C is the sum of the widths L.
        dtype: int32, also for int64 parts.
        ndim: 2.

    Raises:
        UserError: there is no part, or the parts can't stand side by side.
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
        """Slices the rows without a copy."""
        return HStacked([part[rows] for part in self.parts])

    def take(
        self, rows: Integer[np.ndarray, " n"], axis: Literal[0] = 0
    ) -> Int32[np.ndarray, "n C"]:
        """Gathers rows into one array in memory, in the order of ``rows``."""
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
