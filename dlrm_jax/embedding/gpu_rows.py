"""How the Pallas kernels of `fused_update_gpu` read and write ids and rows, masked.

Kernels have references to the arrays of a `row_runs.RowRuns`, at the same names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int, Shaped

NUMBERS = 512
"""Numbers that a warp reads at a time, 16 for each thread."""

_BEYOND = np.int32(2**31 - 1)  # "no row" in any slab, as the numbers of rows are below 2^31


class GpuRows(NamedTuple):
    """The rows of a slab on a GPU.

    Attributes:
        size: number of rows.
        width: numbers of a row.
        ids: number of the ids of the batch.
    """

    size: int
    width: int
    ids: int

    @property
    def columns(self) -> int:
        """The numbers of a row in registers, a power of two; those from ``width`` on are unused."""
        return pl.next_power_of_2(self.width)

    @property
    def together(self) -> int:
        """The vectors that a warp reads at a time."""
        return max(NUMBERS // self.columns, 1)

    def row(self, runs: Any, place: Int[Array, "*p"]) -> Int[Array, "*p"]:
        """The rows at these places in the order of rows; behind the last id there are none."""
        return plgpu.load(runs.rows.at[place], mask=place < self.ids, other=_BEYOND)

    def gradients(
        self, runs: Any, place: Int[Array, " p"], wanted: Bool[Array, " p"], dtype: jnp.dtype
    ) -> Float[Array, "p c"]:
        """The gradients of ids: the cotangents of their bags times their weights; 0 if unwanted."""
        bags = plgpu.load(runs.bags.at[place], mask=wanted, other=0)
        found = self.read(runs.cotangents, bags, wanted).astype(dtype)
        if runs.weights is None:
            return found
        weights = plgpu.load(runs.weights.at[place], mask=wanted, other=0)
        return found * weights.astype(dtype)[:, None]

    def read(self, array: Any, rows: Int[Array, " p"], wanted: Bool[Array, " p"]) -> Array:
        """Rows of an array in memory, [p] or [p, c]; zeros if unwanted."""
        if array.ndim == 1:
            return plgpu.load(array.at[rows], mask=wanted, other=0)
        place, mask = self._elements(rows, wanted)
        return plgpu.load(array.at[place], mask=mask, other=0)

    def write(
        self,
        array: Any,
        rows: Int[Array, " p"],
        wanted: Bool[Array, " p"],
        values: Shaped[Array, "p *c"],
    ) -> None:
        """Writes the wanted ones of some rows to an array in memory."""
        if array.ndim == 1:
            plgpu.store(array.at[rows], values, mask=wanted)
        else:
            place, mask = self._elements(rows, wanted)
            plgpu.store(array.at[place], values, mask=mask)

    def _elements(
        self, rows: Int[Array, " p"], wanted: Bool[Array, " p"]
    ) -> tuple[tuple[Array, Array], Bool[Array, "p c"]]:
        column = jax.lax.broadcasted_iota(jnp.int32, (len(rows), self.columns), 1)
        mask = wanted[:, None] & (column < self.width)
        return (jnp.broadcast_to(rows[:, None], mask.shape), column), mask

    def row_mean(self, x: Float[Array, "p c"]) -> Float[Array, " p"]:
        """The mean of each row, without the unused columns."""
        column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.sum(jnp.where(column < self.width, x, jnp.zeros_like(x)), axis=1) / self.width
