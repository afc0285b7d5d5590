"""The copies of lines between a TPU's memory and its chip, for the kernel of `fused_update_tpu`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dlrm_jax.embedding.packed_rows import LANES
from dlrm_jax.embedding.tpu_lines import IDS, Ids, Lines


class Scratch(NamedTuple):
    """References to what lies on the chip, of the table and each slot.

    Attributes:
        read: lines of two blocks, one of which are on their way, [2, IDS, columns].
        gradients: cotangents of these blocks, [2, IDS, d].
        new: lines to write, [IDS, columns].
        writes: numbers of those that are on their way to memory.
        arrived: semaphores of the halves of ``read`` and ``gradients``.
        left: semaphore of writes.
        before: last row of the block before.
        sums: its sum of gradients, and the numbers of its last line, if they go on.
        marks: 1 where that line has new numbers.
    """

    read: Sequence[Any]
    gradients: Any
    new: Sequence[Any]
    writes: Any
    arrived: Any
    left: Any
    before: Any
    sums: Sequence[Any]
    marks: Sequence[Any]


def scratch(lines: Sequence[Lines], width: int, dtype: Any) -> Scratch:
    """The shapes of it, for rows of so many numbers."""
    return Scratch(
        [pltpu.VMEM((2, IDS, x.columns), dtype) for x in lines],
        pltpu.VMEM((2, IDS, width), dtype),
        [pltpu.VMEM((IDS, x.columns), dtype) for x in lines],
        pltpu.SMEM((len(lines),), jnp.int32),
        pltpu.SemaphoreType.DMA((2,)),
        pltpu.SemaphoreType.DMA(()),
        pltpu.VMEM((1, LANES), jnp.int32),
        [pltpu.VMEM((1, n), dtype) for n in (width, *(x.columns for x in lines))],
        [pltpu.VMEM((1, x.columns), dtype) for x in lines],
    )


@dataclasses.dataclass(frozen=True)
class Copies:
    """The copies of a kernel. Each of them is started first, and waited for later.

    Attributes:
        lines: places of the rows in the table and each slot.
        size: number of rows.
        arrays: references to the table and each slot in memory.
        scratch: references to what lies on the chip.
    """

    lines: Sequence[Lines]
    size: int
    arrays: Sequence[Any]
    scratch: Scratch

    def read(self, ids: Ids, cotangents: Any, half: Any, starts: bool) -> None:
        """Copies what a block needs to the chip: starts to, or waits for it.

        Args:
            ids: ids of the block.
            cotangents: reference to the cotangents of all bags.
            half: half of ``scratch.read`` and ``scratch.gradients``.
            starts: whether it starts.
        """

        def copy(array: Any, line: Any, to: Any, place: Any) -> None:
            to, arrived = to.at[half, pl.ds(place, 1)], self.scratch.arrived.at[half]
            found = pltpu.make_async_copy(array.at[pl.ds(line, 1)], to, arrived)
            found.start() if starts else found.wait()

        def one(place: Any, carry: Any) -> Any:
            row, following = ids.around(place)

            @pl.when(row < self.size)
            def _() -> None:
                copy(cotangents, ids.bags[0, 0, place], self.scratch.gradients, place)

            @pl.when((row < self.size) & (row != following))
            def _() -> None:
                for lines, array, to in zip(
                    self.lines, self.arrays, self.scratch.read, strict=True
                ):
                    copy(array, lines.of(row), to, place)

            return carry

        jax.lax.fori_loop(0, IDS, one, None)

    def write(self, ids: Ids) -> None:
        """Starts to copy the lines that end in a block to memory."""
        writes = self.scratch.writes
        for i in range(len(self.arrays)):
            writes[i] = 0

        def one(place: Any, carry: Any) -> Any:
            row, following = ids.around(place)
            for i, (lines, array) in enumerate(zip(self.lines, self.arrays, strict=True)):
                line, new = lines.of(row), self.scratch.new[i]

                @pl.when((row < self.size) & (line != lines.of(following)))
                def _(i: int = i, line: Any = line, new: Any = new, array: Any = array) -> None:
                    to, left = array.at[pl.ds(line, 1)], self.scratch.left
                    pltpu.make_async_copy(new.at[pl.ds(place, 1)], to, left).start()
                    writes[i] += 1

            return carry

        jax.lax.fori_loop(0, IDS, one, None)

    def wait_for_writes(self) -> None:
        """Waits until all of these lines are in memory."""
        for i, array in enumerate(self.arrays):
            new, left = self.scratch.new[i], self.scratch.left
            copy = pltpu.make_async_copy(new.at[pl.ds(0, 1)], array.at[pl.ds(0, 1)], left)

            def one(_: Any, carry: Any, copy: Any = copy) -> Any:
                copy.wait()
                return carry

            jax.lax.fori_loop(0, self.scratch.writes[i], one, None)
