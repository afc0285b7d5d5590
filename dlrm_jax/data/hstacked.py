"""Ids in several arrays, read as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int32, Integer, Shaped

from dlrm_jax.errors import UserError

_INT32 = np.iinfo(np.int32)


class HStacked:
    """Arrays side by side, as `np.hstack` would join them, without a copy.

    Slices are views of the arrays; `take` and `np.asarray` copy. The shape is [N, C], C the sum of
    the widths L; the type is int32.

    Args:
        arrays: ids, int32 or int64 [N, L] each, in row-major order; memory maps may be unaligned.
            Values must fit into int32, which is checked where they are copied.

    Raises:
        UserError: there is no array, or the arrays can't stand side by side.
    """

    dtype, ndim = np.dtype(np.int32), 2

    def __init__(self, arrays: Sequence[np.ndarray]):
        for i, array in enumerate(arrays):
            flags = array.flags
            if array.dtype not in (np.int32, np.int64) or array.ndim != 2 or not flags.c_contiguous:
                raise UserError(
                    f"ids must be int32 or int64 arrays with 2 axes in row-major order, got "
                    f"{array.dtype} of shape {array.shape} and strides {array.strides} in array "
                    f"{i} (from 0)."
                )
            if len(array) != len(arrays[0]):
                raise UserError(
                    f"ids that belong together need arrays of the same length, got "
                    f"{len(arrays[0])} rows in the first and {len(array)} in array {i} (from 0)."
                )
        if not arrays:
            raise UserError("ids need at least one array, got none.")
        # A plain view: gathering from np.memmap objects costs Python calls for every result.
        self.arrays = tuple(np.asarray(array) for array in arrays)
        self.shape = (len(arrays[0]), sum(array.shape[1] for array in arrays))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> HStacked:
        """Slices the rows without a copy."""
        return HStacked([array[rows] for array in self.arrays])

    def take(
        self, rows: Integer[np.ndarray, " n"], axis: Literal[0] = 0
    ) -> Int32[np.ndarray, "n C"]:
        """Gathers rows into one array in memory, in the order of ``rows``."""
        return _joined([_taken(array, rows) for array in self.arrays])

    def as_stored(self) -> Integer[np.ndarray, "N C"]:
        """Copies the arrays into one that holds every id, in the widest of their types."""
        return np.concatenate(self.arrays, axis=1)

    def __array__(
        self, dtype: np.dtype | None = None, copy: bool | None = None
    ) -> Shaped[np.ndarray, "N C"]:
        if copy is False:
            raise ValueError("arrays side by side become one by a copy only")
        return _joined(self.arrays).astype(dtype or self.dtype, copy=False)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    for number, array in enumerate(arrays):
        if array.dtype == np.int32 or not array.size:
            continue
        if array.min() < _INT32.min or array.max() > _INT32.max:
            row, column = np.argwhere((array < _INT32.min) | (array > _INT32.max))[0]
            raise UserError(
                f"ids, column {column} of array {number} (both from 0): expected ids of 32 bits, "
                f"got {array[row, column]}; correct the ids"
            )
    return np.concatenate(arrays, axis=1, dtype=np.int32, casting="same_kind")


def _taken(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # NumPy would copy the whole of an unaligned array first. Bytes are always aligned.
    return array.view(np.uint8).take(rows, axis=0).view(array.dtype)
