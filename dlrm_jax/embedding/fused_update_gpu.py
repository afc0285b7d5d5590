"""The update of the touched rows as two Pallas kernels for GPUs, by Triton.

They take the ids of a batch in the order of their rows. A program has `IDS` of them. The first
kernel sums the gradients of the last row of a program where the next program goes on with it. The
second one walks through the ids that the first one left, from the first to the last: it adds up the
gradients of a row, beginning with the sums that programs before it left, and where the row ends it
applies the optimizer and writes the row. So each cotangent is read once for each id, each row is
read and written once, and neither the gradients of ids nor those of rows are in memory. A row that
very many ids name is summed by many programs. The order of the sums is always the same, and there
are no atomics.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.embedding.gpu_rows import GpuRows
from dlrm_jax.embedding.optimizer import rate_at
from dlrm_jax.embedding.row_optimizer import RowOptimizer, Slots, checked_update
from dlrm_jax.embedding.row_runs import RowRuns
from dlrm_jax.embedding.storage_dtype import decode, encode

IDS = 64
"""Ids of a program."""

_PROGRAMS = 128  # that are looked at together, for the start of a row that many ids name
_AHEAD = 4  # ids whose cotangents and rows the second kernel reads before it uses them


def update_runs(
    optimizer: RowOptimizer,
    table: Shaped[Array, "R d"],
    slots: Slots,
    runs: RowRuns,
    step: Int[Array, ""],
    dtype: np.dtype | None = None,
    rate_factor: Float[Array, ""] | None = None,
    interpret: bool = False,
) -> tuple[Shaped[Array, "R d"], Slots]:
    """Applies one update to the rows of a batch, in place where the arrays are donated.

    Args:
        optimizer: optimizer of all R rows, one that is ``fusible``.
        table: rows of one device, [R, d], in their storage dtype.
        slots: optimizer slots of these rows, [R] or [R, d] each.
        runs: ids of the batch by row, and the cotangents of their bags.
        step: number of updates done before this one.
        dtype: dtype of the table; None if it is the storage dtype.
        rate_factor: factor of the changes; None for 1.
        interpret: whether a CPU emulates the GPU.
    """
    if not (table.size and runs.rows.size):
        return table, slots
    kind = np.dtype(dtype or table.dtype)
    wide = jnp.promote_types(kind, jnp.float32)
    of = GpuRows(table.shape[0], table.shape[1], len(runs.rows))
    rate = rate_at(optimizer.learning_rate, step)  # pyright: ignore[reportAttributeAccessIssue]
    rate = jnp.asarray(rate if rate_factor is None else rate * rate_factor, wide)

    def kernel(
        runs: RowRuns, sums: Any, step: Any, rate: Any, _: Any, table: Any, slots: Any
    ) -> None:
        start = pl.program_id(0) * IDS
        following = of.row(runs, _one(start + IDS))
        changes: Any = {"learning_rate": lambda _: rate[0]}
        at_rate = dataclasses.replace(optimizer, **changes)  # pyright: ignore[reportArgumentType]
        count = step[0]

        def update(row: Array, wanted: Array, old: Any, gradients: Array) -> None:
            stored, old_slots = old
            values = decode(stored, kind).astype(wide)
            change, new = checked_update(at_rate, values, gradients, old_slots, count, of.row_mean)
            found = (values + change.astype(wide)).astype(kind)
            of.write(table, row, wanted, found if table.dtype == kind else encode(found))
            for name, slot in slots.items():
                of.write(slot, row, wanted, new[name])

        def walk(turn: Any, total: Array) -> Array:
            places = [_one(start + turn * _AHEAD + i) for i in range(_AHEAD + 1)]
            rows = [of.row(runs, place) for place in places]
            last = [rows[i] != rows[i + 1] for i in range(_AHEAD)]
            # The first kernel has summed the row that the next program goes on with.
            own = [(row != following) & (row < of.size) for row in rows[:_AHEAD]]
            gradients = [of.gradients(runs, places[i], own[i], wide) for i in range(_AHEAD)]
            ends = [last[i] & own[i] for i in range(_AHEAD)]
            arrays = table, slots
            olds = [
                jax.tree.map(lambda x, i=i: of.read(x, rows[i], ends[i]), arrays)
                for i in range(_AHEAD)
            ]
            for i in range(_AHEAD):
                total += gradients[i]
                update(rows[i], ends[i], olds[i], total)
                total = jnp.where(last[i][:, None], jnp.zeros_like(total), total)
            return total

        first = of.row(runs, _one(start))
        has_own = jnp.sum((first != following) & (first < of.size), dtype=jnp.int32)
        total = _left_before(of, runs, sums, first, has_own)
        jax.lax.fori_loop(0, has_own * (IDS // _AHEAD), walk, total)

    sums = _sums_of_rows(of, runs, wide, interpret)
    given = runs, sums, step.astype(jnp.int32).reshape(1), rate.reshape(1)
    before, leaves = len(jax.tree.leaves(given)), len(jax.tree.leaves(slots)) + 1
    return _call(
        kernel,
        "update_rows",
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (table, slots)),
        {before + i: i for i in range(leaves)},
        interpret,
        *given,
        (table, slots),
    )


def _sums_of_rows(of: GpuRows, runs: RowRuns, dtype: Any, interpret: bool) -> Float[Array, "P d"]:
    """The first kernel: the sum of each program for the row that the next one goes on with.

    Where there is no such row, the numbers are undefined.
    """
    ids = min(of.together, IDS)

    def kernel(runs: RowRuns, out: Any) -> None:
        program = pl.program_id(0)
        start = program * IDS
        following = of.row(runs, _one(start + IDS))
        goes_on = (of.row(runs, _one(start + IDS - 1)) == following) & (following < of.size)
        number = jax.lax.broadcasted_iota(jnp.int32, (ids,), 0)

        def add(turn: Any, total: Array) -> Array:
            place = start + turn * ids + number
            return total + of.gradients(runs, place, of.row(runs, place) == following, dtype)

        turns = jnp.sum(goes_on, dtype=jnp.int32) * (IDS // ids)
        total = jax.lax.fori_loop(0, turns, add, jnp.zeros((ids, of.columns), dtype))
        of.write(out, _one(program), goes_on, total.sum(axis=0, keepdims=True))

    out = jax.ShapeDtypeStruct((pl.cdiv(of.ids, IDS), of.width), dtype)
    return _call(kernel, "sums_of_rows", out, {}, interpret, runs)


def _left_before(
    of: GpuRows, runs: RowRuns, sums: Any, row: Int[Array, " 1"], wanted: Int[Array, ""]
) -> Float[Array, "1 c"]:
    """The sum that the programs before this one have left for its first row.

    Args:
        of: rows of the slab.
        runs: ids of the batch.
        sums: sums of `_sums_of_rows`.
        row: first row of this program.
        wanted: 1 if the row ends in this program, else 0.
    """
    program = pl.program_id(0)

    # Counted first and then summed: Triton's compiler crashes on such a loop with a sum of vectors.
    def count(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        found, _ = carry
        programs = program - 1 - found - jax.lax.broadcasted_iota(jnp.int32, (_PROGRAMS,), 0)
        places = jnp.where(programs >= 0, (programs + 1) * IDS - 1, of.ids)
        more = jnp.sum(of.row(runs, places) == row, dtype=jnp.int32)
        return found + more, more

    start = jnp.int32(0), wanted * _PROGRAMS
    programs, _ = jax.lax.while_loop(lambda carry: carry[1] == _PROGRAMS, count, start)

    def add(turn: Any, total: Array) -> Array:
        place = turn * of.together + jax.lax.broadcasted_iota(jnp.int32, (of.together,), 0)
        return total + of.read(sums, program - 1 - place, place < programs)

    total = jnp.zeros((of.together, of.columns), sums.dtype)
    # `pl.cdiv` fails where JAX has 64 bits.
    turns = jax.lax.div(programs + np.int32(of.together - 1), np.int32(of.together))
    total = jax.lax.fori_loop(0, turns, add, total)
    return total.sum(axis=0, keepdims=True)


def _one(number: Any) -> Int[Array, " 1"]:
    return jnp.full((1,), number, jnp.int32)


def _call(
    kernel: Any, name: str, out: Any, aliases: dict[int, int], interpret: bool, *given: Any
) -> Any:
    """Runs a kernel for all programs; arguments are those of `pl.pallas_call`."""
    ids = len(given[0].rows)
    return pl.pallas_call(
        kernel,
        out_shape=out,
        grid=(pl.cdiv(ids, IDS),),
        input_output_aliases=aliases,
        compiler_params=plgpu.CompilerParams(num_warps=1),
        interpret=interpret,
        name=name,
    )(*given)
