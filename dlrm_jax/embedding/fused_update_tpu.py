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
from typing import Any

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
from dlrm_jax.embedding.tpu_copies import Copies, Scratch, scratch
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
    (found,) = pl.pallas_call(
        _Kernel(optimizer, lines, size).block,
        grid=(blocks,),
        in_specs=[spec for _, spec in given],
        out_specs=([whole] * len(arrays),),
        out_shape=(
            [jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in arrays],
        ),
        input_output_aliases={before + i: i for i in range(len(arrays))},
        scratch_shapes=[scratch(lines, width, dtype)],
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
        scratch: Scratch,
    ) -> None:
        """Works on a block; its arguments are references to those of the call."""
        block, blocks = pl.program_id(0), pl.num_programs(0)
        half = jax.lax.rem(block, jnp.int32(2))
        copies = Copies(self.lines, self.size, arrays, scratch)

        @pl.when(block == 0)
        def _() -> None:
            scratch.before[...] = jnp.full_like(scratch.before, -1)
            for x in (*scratch.sums, *scratch.marks):
                x[...] = jnp.zeros_like(x)
            copies.read(ids, cotangents, 0, starts=True)

        @pl.when(block + 1 < blocks)
        def _() -> None:
            copies.read(next_ids, cotangents, 1 - half, starts=True)

        copies.read(ids, cotangents, half, starts=False)
        gradients = scratch.gradients[half]
        if weights is not None:
            gradients *= column(weights[0], gradients.shape[1])
        row, following = (column(x[0], LANES) for x in around)
        new = self._updated(row, following, gradients, half, step[0], rate[0], scratch)
        pl.when(block > 0)(copies.wait_for_writes)
        for place, x in zip(scratch.new, new, strict=True):
            place[...] = x
        copies.write(ids)
        pl.when(block + 1 == blocks)(copies.wait_for_writes)

    def _updated(
        self,
        row: Array,
        following: Array,
        gradients: Array,
        half: Any,
        step: Any,
        rate: Any,
        scratch: Scratch,
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


def _summed(key: Array, x: Array, before: Array, carried: Any) -> Array:
    """`run_sums`, with keys [n, 128] for all columns."""
    columns = x.shape[1]

    def wide(key: Array) -> Array:
        return jnp.concatenate([key] * -(-columns // LANES), axis=1)[:, :columns]

    return run_sums(wide(key), x, wide(before), carried)
