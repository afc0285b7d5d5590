"""The update of the touched rows as a Pallas kernel for TPUs, compiled by Mosaic.

It takes the ids of a batch in the order of their rows, a block after the other. While it works on a
block, the cotangents of the next one's bags come to the chip, and the lines of memory that have its
rows. It sums the cotangents of each row, applies the optimizer, and copies lines back when their
last row is done. So no array has a gradient for each id or for each row, each line is written once,
and the order of a sum is always the same. What a row or a line has in one block is handed on to the
next, if it goes on there. Lines are those of `packed_rows`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from dlrm_jax.embedding.optimizer import rate_at
from dlrm_jax.embedding.packed_rows import LANES, per_line
from dlrm_jax.embedding.row_optimizer import RowOptimizer, Slots, checked_update, mean_of_columns
from dlrm_jax.embedding.row_runs import RowRuns
from dlrm_jax.embedding.tpu_lines import IDS, Ids, Lines, column, run_sums

_BEYOND = np.int32(2**31 - 1)  # "no row" in any slab, as the numbers of rows are below 2^31


def update_runs(
    optimizer: RowOptimizer,
    table: Float[Array, "_ _"],
    slots: Slots,
    runs: RowRuns,
    step: Int[Array, ""],
    rate_factor: Float[Array, ""] | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "_ _"], Slots]:
    """Applies one update to the rows of a batch, in place where the arrays are donated.

    Args:
        optimizer: optimizer of all R rows, one that is ``fusible``.
        table: rows of one device, packed or in lines of their own, of float32.
        slots: optimizer slots of these rows, as the table or [R] each; R fills lines.
        runs: ids of the batch by row, and the cotangents of their bags.
        step: number of updates done before this one.
        rate_factor: factor of the changes; None for 1.
        interpret: whether Pallas emulates the kernel, or how.
    """
    if not (table.size and runs.rows.size):
        return table, slots
    width, columns = runs.cotangents.shape[1], table.shape[1]
    own = Lines(per_line(width) if columns != width else 1, columns, width)
    kinds = ["element", *optimizer.slots.values()]
    lines = [own if kind == "element" else Lines(LANES, LANES, None) for kind in kinds]
    rate = rate_at(optimizer.learning_rate, step)  # pyright: ignore[reportAttributeAccessIssue]
    rate = jnp.asarray(rate if rate_factor is None else rate * rate_factor, table.dtype)
    arrays = [table, *(slots[name] for name in optimizer.slots)]
    stored = [x if x.ndim == 2 else x.reshape(-1, LANES) for x in arrays]
    given = optimizer, tuple(lines), len(table) * own.per_line, stored, runs
    found = _call(*given, step.astype(jnp.int32), rate, interpret)
    table, *new = (x.reshape(old.shape) for x, old in zip(found, arrays, strict=True))
    return table, dict(zip(optimizer.slots, new, strict=True))


class _Scratch(NamedTuple):
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


def _call(
    optimizer: RowOptimizer,
    lines: tuple[Lines, ...],
    size: int,
    arrays: list[Array],
    runs: RowRuns,
    step: Array,
    rate: Array,
    interpret: Any,
) -> list[Array]:
    """Runs the kernel; arrays are of lines, and there are ``size`` rows."""
    count, dtype = len(runs.rows), arrays[0].dtype
    blocks, width = pl.cdiv(count, IDS), runs.cotangents.shape[1]

    def by_block(x: Array, fill: Any) -> Array:
        x = jnp.pad(x, (0, blocks * IDS - count), constant_values=fill)
        return x.reshape(blocks, 1, IDS)

    rows = by_block(runs.rows, _BEYOND)
    following = jnp.append(rows.reshape(-1)[1:], _BEYOND).reshape(rows.shape)
    ids = Ids(rows, following, by_block(runs.bags, 0))
    weights = None if runs.weights is None else by_block(runs.weights.astype(dtype), 0)

    def spec(ahead: int, memory: Any) -> pl.BlockSpec:
        def place(block: Any) -> Any:
            return jnp.minimum(block + ahead, blocks - 1), 0, 0

        return pl.BlockSpec((1, 1, IDS), place, memory_space=memory)

    own, following_block, here = spec(0, pltpu.SMEM), spec(1, pltpu.SMEM), spec(0, pltpu.VMEM)
    whole, scalar = pl.BlockSpec(memory_space=pl.ANY), pl.BlockSpec(memory_space=pltpu.SMEM)
    given = (
        (ids, Ids(own, own, own)),
        (ids, Ids(following_block, following_block, following_block)),
        ((rows, following), (here, here)),
        (weights, None if weights is None else here),
        (step.reshape(1), scalar),
        (rate.reshape(1), scalar),
        (runs.cotangents.astype(dtype), whole),
        (arrays, [whole] * len(arrays)),
    )
    before = len(jax.tree.leaves([x for x, _ in given[:-1]]))
    varying = jax.typeof(arrays[0]).manual_axis_type
    scratch = _Scratch(
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
    (found,) = pl.pallas_call(
        _Kernel(optimizer, lines, size).block,
        grid=(blocks,),
        in_specs=[spec for _, spec in given],
        out_specs=([whole] * len(arrays),),
        out_shape=(
            [jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in arrays],
        ),
        input_output_aliases={before + i: i for i in range(len(arrays))},
        scratch_shapes=[scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="update_rows",
    )(*(x for x, _ in given))
    return found


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """The kernel.

    Attributes:
        optimizer: optimizer of the rows.
        lines: places of the rows in the table and each slot.
        size: number of rows.
    """

    optimizer: RowOptimizer
    lines: tuple[Lines, ...]
    size: int

    def block(
        self,
        ids: Ids,
        next_ids: Ids,
        around: tuple[Any, Any],
        weights: Any,
        step: Any,
        rate: Any,
        cotangents: Any,
        _: Any,
        arrays: list[Any],
        scratch: _Scratch,
    ) -> None:
        """Works on a block; its arguments are references to those of the call."""
        block, blocks = pl.program_id(0), pl.num_programs(0)
        half = jax.lax.rem(block, jnp.int32(2))

        @pl.when(block == 0)
        def _() -> None:
            scratch.before[...] = jnp.full_like(scratch.before, -1)
            for x in (*scratch.sums, *scratch.marks):
                x[...] = jnp.zeros_like(x)
            self._read(ids, cotangents, arrays, scratch, 0, starts=True)

        @pl.when(block + 1 < blocks)
        def _() -> None:
            self._read(next_ids, cotangents, arrays, scratch, 1 - half, starts=True)

        self._read(ids, cotangents, arrays, scratch, half, starts=False)
        gradients = scratch.gradients[half]
        if weights is not None:
            gradients *= column(weights[0], gradients.shape[1])
        row, following = (column(x[0], LANES) for x in around)
        new = self._updated(row, following, gradients, half, step[0], rate[0], scratch)
        pl.when(block > 0)(lambda: self._wait_for_writes(arrays, scratch))
        for place, x in zip(scratch.new, new, strict=True):
            place[...] = x
        self._write(ids, arrays, scratch)
        pl.when(block + 1 == blocks)(lambda: self._wait_for_writes(arrays, scratch))

    def _updated(
        self,
        row: Array,
        following: Array,
        gradients: Array,
        half: Any,
        step: Any,
        rate: Any,
        scratch: _Scratch,
    ) -> list[Array]:
        """The lines of a block with their new rows, at the places of their last ids."""
        before = scratch.before[...]
        gradients = _summed(row, gradients, before, scratch.sums[0])
        read = [lines.cut(x[half], row) for lines, x in zip(self.lines, scratch.read, strict=True)]
        changes: Any = {"learning_rate": lambda _: rate}
        optimizer = dataclasses.replace(self.optimizer, **changes)  # pyright: ignore
        old = dict(zip(optimizer.slots, read[1:], strict=True))
        change, slots = checked_update(optimizer, read[0], gradients, old, step, mean_of_columns)
        rows = [read[0] + change, *(slots[name] for name in optimizer.slots)]
        is_done = (row != following) & (row < self.size)
        found = []
        for i, (lines, x) in enumerate(zip(self.lines, rows, strict=True)):
            if lines.per_line == 1:
                found.append(lines.spread(x))
                continue
            line, line_before = lines.of(row), lines.of(before)
            is_new = is_done & lines.is_own(row)
            new, ones = jnp.where(is_new, lines.spread(x), 0), jnp.where(is_new, 1, 0)
            numbers = _summed(line, new, line_before, scratch.sums[1 + i])
            marks = _summed(line, ones.astype(x.dtype), line_before, scratch.marks[i])
            found.append(jnp.where(marks > 0, numbers, scratch.read[i][half]))
        scratch.before[...] = row[-1:]
        return found

    def _read(
        self,
        ids: Ids,
        cotangents: Any,
        arrays: list[Any],
        scratch: _Scratch,
        half: Any,
        starts: bool,
    ) -> None:
        """Starts to copy what a block needs, or waits for it."""

        def copy(array: Any, line: Any, to: Any, place: Any) -> None:
            to = to.at[half, pl.ds(place, 1)]
            found = pltpu.make_async_copy(array.at[pl.ds(line, 1)], to, scratch.arrived.at[half])
            found.start() if starts else found.wait()

        def one(place: Any, carry: Any) -> Any:
            row, following = ids.around(place)

            @pl.when(row < self.size)
            def _() -> None:
                copy(cotangents, ids.bags[0, 0, place], scratch.gradients, place)

            @pl.when((row < self.size) & (row != following))
            def _() -> None:
                for lines, array, to in zip(self.lines, arrays, scratch.read, strict=True):
                    copy(array, lines.of(row), to, place)

            return carry

        jax.lax.fori_loop(0, IDS, one, None)

    def _write(self, ids: Ids, arrays: list[Any], scratch: _Scratch) -> None:
        """Starts to copy the lines that end in a block to memory."""
        for i in range(len(arrays)):
            scratch.writes[i] = 0

        def one(place: Any, carry: Any) -> Any:
            row, following = ids.around(place)
            for i, (lines, array) in enumerate(zip(self.lines, arrays, strict=True)):
                line, new = lines.of(row), scratch.new[i]

                @pl.when((row < self.size) & (line != lines.of(following)))
                def _(i: int = i, line: Any = line, new: Any = new, array: Any = array) -> None:
                    to = array.at[pl.ds(line, 1)]
                    pltpu.make_async_copy(new.at[pl.ds(place, 1)], to, scratch.left).start()
                    scratch.writes[i] += 1

            return carry

        jax.lax.fori_loop(0, IDS, one, None)

    def _wait_for_writes(self, arrays: list[Any], scratch: _Scratch) -> None:
        """Waits until all of these lines are in memory."""
        for i, array in enumerate(arrays):
            copy = pltpu.make_async_copy(
                scratch.new[i].at[pl.ds(0, 1)], array.at[pl.ds(0, 1)], scratch.left
            )

            def one(_: Any, carry: Any, copy: Any = copy) -> Any:
                copy.wait()
                return carry

            jax.lax.fori_loop(0, scratch.writes[i], one, None)


def _summed(key: Array, x: Array, before: Array, carried: Any) -> Array:
    """`run_sums`, with keys [n, 128] for all columns."""
    columns = x.shape[1]

    def wide(key: Array) -> Array:
        return jnp.concatenate([key] * -(-columns // LANES), axis=1)[:, :columns]

    return run_sums(wide(key), x, wide(before), carried)
