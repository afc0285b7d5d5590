"""Vectors of items as 8-bit integers with a scale each, in blocks that a processor reads in order.

A number is scale · q, with q from -127 to 127 and the scale of its row: the largest magnitude of
the row over 127. So a product of two vectors is one of integers, exact in 32 bits, times both
scales.

A block has 32 items. Its numbers lie as [groups of four numbers][32 items][4], so that an
instruction multiplies four numbers of 16 items at once. Rows are filled up with zeros to a multiple
of four.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int8, Int32, Int64

from dlrm_jax.native.item_scan import BLOCK

MOST = 127
"""Largest integer of a vector."""

GAP = -1
"""Number of the item where a block has none."""

_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class ItemVectors:
    """Vectors of items in blocks.

    Attributes:
        blocks: integers, see the module.
        scales: scale of each place; 0 in gaps.
        numbers: number of the item in each place; `GAP` where there is none.
        dim: numbers of a vector.
    """

    blocks: Int8[np.ndarray, "B G 32 4"]
    scales: Float32[np.ndarray, " P"]
    numbers: Int32[np.ndarray, " P"]
    dim: int

    @classmethod
    def of(
        cls, vectors: Float32[np.ndarray, "I d"], places: Int32[np.ndarray, " P"]
    ) -> ItemVectors:
        """Vectors in the order of places.

        Args:
            vectors: vectors by item, finite.
            places: number of the item of each place, whole blocks of them; `GAP` for none.
        """
        dim = vectors.shape[1]
        width = -(-dim // 4) * 4
        rows, scales = np.zeros((len(places), width), np.int8), np.zeros(len(places), np.float32)
        for first in range(0, len(places), _CHUNK):
            own = slice(first, first + _CHUNK)
            there = np.flatnonzero(places[own] != GAP) + first
            rows[there, :dim], scales[there] = quantize(vectors[places[there]])
        return cls(pack(rows), scales, places, dim)

    def rows(self) -> Int8[np.ndarray, "P w"]:
        """The integers row by row, with the zeros that fill them up."""
        blocks, groups = self.blocks.shape[:2]
        return self.blocks.transpose(0, 2, 1, 3).reshape(blocks * BLOCK, groups * 4)


def pack(rows: Int8[np.ndarray, "P w"]) -> Int8[np.ndarray, "B G 32 4"]:
    """Rows of a multiple of four numbers, a multiple of `BLOCK` of them, as blocks."""
    blocks, groups = len(rows) // BLOCK, rows.shape[1] // 4
    return np.ascontiguousarray(rows.reshape(blocks, BLOCK, groups, 4).transpose(0, 2, 1, 3))


def quantize(
    vectors: Float32[np.ndarray, "n d"],
) -> tuple[Int8[np.ndarray, "n d"], Float32[np.ndarray, " n"]]:
    """Integers and scale of each vector; a vector of zeros has the scale 1.

    Args:
        vectors: vectors, finite.
    """
    scales = np.abs(vectors).max(axis=1) / np.float32(MOST)
    scales = np.where(scales == 0, np.float32(1), scales)
    # A scale may be too small for float32 to have all digits of it.
    integers = np.clip(np.rint(vectors / scales[:, None]), -MOST, MOST)
    return integers.astype(np.int8), scales


def queries_of(
    vectors: Float32[np.ndarray, "n d"],
) -> tuple[Int8[np.ndarray, "n w"], Float32[np.ndarray, " n"]]:
    """Integers of queries, filled up with zeros, and their scales; see `quantize`."""
    integers, scales = quantize(vectors)
    fill = -integers.shape[1] % 4
    return np.pad(integers, ((0, 0), (0, fill))) if fill else integers, scales


def in_order(count: int) -> Int32[np.ndarray, " P"]:
    """The places of so many items in the order of their numbers."""
    places = np.full(-(-count // BLOCK) * BLOCK, GAP, np.int32)
    places[:count] = np.arange(count)
    return places


def in_cells(
    cells: Int32[np.ndarray, " I"], count: int
) -> tuple[Int32[np.ndarray, " P"], Int64[np.ndarray, " S"]]:
    """The places of items cell by cell, each in whole blocks.

    Args:
        cells: cell of each item.
        count: number of cells C.

    Returns:
        The number of the item of each place, and the first block of each cell with the end of all.
    """
    sizes = np.bincount(cells, minlength=count)
    starts = np.cumsum([0, *(-(-sizes // BLOCK))]).astype(np.int64)
    order = np.argsort(cells, kind="stable")
    before = np.repeat(starts[:-1] * BLOCK - np.cumsum([0, *sizes[:-1]]), sizes)
    places = np.full(starts[-1] * BLOCK, GAP, np.int32)
    places[before + np.arange(len(cells))] = order
    return places, starts
