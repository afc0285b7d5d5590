"""How the Pallas kernel of `fused_update_tpu` reads and writes rows: by lines of a TPU's memory.

A block of `IDS` ids lies on the chip with an id in each sublane, in the order of their rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int32, Shaped

from dlrm_jax.embedding.packed_rows import LANES

IDS = 128
"""Ids of a block, as many as a line has numbers."""


class Lines(NamedTuple):
    """The places of rows in the lines of an array.

    Attributes:
        per_line: rows of a line.
        columns: numbers of a line; 128 if it has several rows.
        width: numbers of a row; None if an array has one number for each row.
    """

    per_line: int
    columns: int
    width: int | None

    def of(self, row: Any) -> Any:
        """The line of a row."""
        return jax.lax.div(row, jnp.full_like(row, self.per_line)) if self.per_line > 1 else row

    def _place(self, row: Int32[Array, "i lanes"]) -> Int32[Array, "i lanes"]:
        return jax.lax.rem(row, jnp.full_like(row, self.per_line))

    def is_own(self, row: Int32[Array, "i lanes"]) -> Bool[Array, "i lanes"]:
        """Whether numbers of a line are those of the row, if there are several."""
        lane = jax.lax.broadcasted_iota(jnp.int32, row.shape, 1)
        return jax.lax.div(lane, jnp.full_like(lane, LANES // self.per_line)) == self._place(row)

    def cut(
        self, lines: Float[Array, "i columns"], row: Int32[Array, "i lanes"]
    ) -> Float[Array, "i *d"]:
        """The rows in their lines."""
        if self.width is None:
            return jnp.sum(jnp.where(self.is_own(row), lines, 0), axis=1)
        size, found = self.columns // self.per_line, lines[:, : self.width]
        for i in range(1, self.per_line):
            own = self._place(row) == i
            place = lines[:, i * size : i * size + self.width]
            found = jnp.where(own[:, : self.width], place, found)
        return found

    def spread(self, x: Float[Array, "i *d"]) -> Float[Array, "i columns"]:
        """The rows in each place of a line."""
        if x.ndim == 1:
            return jnp.broadcast_to(x[:, None], (len(x), self.columns))
        size = self.columns // self.per_line
        x = jnp.pad(x, ((0, 0), (0, size - x.shape[1]))) if x.shape[1] < size else x
        return jnp.concatenate([x] * self.per_line, axis=1) if self.per_line > 1 else x


class Ids(NamedTuple):
    """References to the ids of a block, [1, 1, IDS] each.

    Attributes:
        rows: row of each id, ascending.
        following: row of the next id.
        bags: bag of each id.
    """

    rows: Any
    following: Any
    bags: Any

    def around(self, place: Any) -> tuple[Any, Any]:
        """The row of the id at a place, and the next one's."""
        return self.rows[0, 0, place], self.following[0, 0, place]


def column(x: Shaped[Array, "1 i"], columns: int) -> Shaped[Array, "i columns"]:
    """A number for each id, in all columns."""
    found = jnp.broadcast_to(x, (IDS, IDS)).T
    if columns <= LANES:
        return found[:, :columns]
    return jnp.concatenate([found] * -(-columns // LANES), axis=1)[:, :columns]


def run_sums(
    key: Int32[Array, "i c"], x: Float[Array, "i c"], before: Int32[Array, "1 c"], carried: Any
) -> Float[Array, "i c"]:
    """The sum of each run of equal keys up to each of its places.

    Args:
        key: keys, ascending.
        x: numbers to add.
        before: key of the last id of the block before.
        carried: reference to the sum that it has, which the block's own last one replaces.
    """
    place, step = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0), 1
    while step < IDS:
        same = (place >= step) & (pltpu.roll(key, step, 0) == key)
        # Selected, not multiplied: a row's infinite gradient stays out of those of others.
        x, step = x + jnp.where(same, pltpu.roll(x, step, 0), 0), 2 * step
    x += jnp.where(key == before, carried[...], 0)
    carried[...] = x[-1:]
    return x
