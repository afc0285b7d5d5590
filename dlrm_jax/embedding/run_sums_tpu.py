"""Sums over runs of equal rows, as a Pallas kernel for TPUs.

XLA's program, that of `row_runs`, adds each id up to 32 times: with it, a step of `mlperf_v2` on
128 TPUs v5e had 20 million cycles that libtpu 0.0.41 counts, and 13 of them were its. The kernel
keeps a block of ids in registers, where each place has the sum of twice as many in each step, and
hands the sum of a run that goes on to the next block.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

BLOCK = 128
"""Ids of a block, and the most columns of one."""


def sums_up_to(
    before: Int32[Array, " K"], x: Float[Array, "K d"], interpret: bool = False
) -> Float[Array, "K d"]:
    """The sum of each run up to each of its places.

    Args:
        before: number of places of the same run before each one.
        x: numbers to add, of at least a block.
        interpret: whether Pallas emulates the kernel.
    """
    count, width = x.shape
    columns = min(BLOCK, width)
    of_columns = pl.BlockSpec((BLOCK, columns), lambda column, block: (block, column))
    # What the last block reads behind the end comes after all that is kept.
    return pl.pallas_call(
        functools.partial(_add, columns=columns),
        grid=(pl.cdiv(width, columns), pl.cdiv(count, BLOCK)),
        in_specs=[pl.BlockSpec((1, BLOCK), lambda column, block: (0, block)), of_columns],
        out_specs=of_columns,
        out_shape=jax.ShapeDtypeStruct(
            x.shape, x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type
        ),
        scratch_shapes=[pltpu.VMEM((1, columns), x.dtype)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(before[None], x)


def _add(before_ref: Any, x_ref: Any, sums_ref: Any, carried_ref: Any, *, columns: int) -> None:
    # A number for each place, in all columns.
    before = jnp.broadcast_to(before_ref[...], (BLOCK, BLOCK)).T[:, :columns]
    place = jax.lax.broadcasted_iota(jnp.int32, before.shape, 0)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        carried_ref[...] = jnp.zeros_like(carried_ref)

    sums, step = x_ref[...], 1
    within = jnp.minimum(before, place)  # places of the same run before each one in the block
    while step < BLOCK:
        # Selected, not multiplied: a row's infinite gradient stays out of those of others.
        sums += jnp.where(within >= step, pltpu.roll(sums, step, 0), 0)
        step *= 2
    sums += jnp.where(before > place, carried_ref[...], 0)
    sums_ref[...] = sums
    carried_ref[...] = sums[-1:]
