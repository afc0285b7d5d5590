"""The pooled lookup as a Pallas kernel for TPUs; `pooling.pool` says what it computes.

XLA's own program is a loop that writes the vectors of one id of all bags to memory and adds them to
those of the ids before. The kernel copies rows from memory to the chip, many at the same time, and
sums those of a bag there: it writes each bag once. It reads whole lines of memory, so that rows
must fill lines, or be packed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from dlrm_jax.embedding.packed_rows import LANES, columns, per_line

_IDS = 1024  # of a block of bags, whose rows are on the way together
_NUMBERS = 2**18  # of these rows: a mebibyte of the chip's memory
_SUBLANES = 8  # bags of a block are a multiple of it
_GROUPS = 8  # parts of a block of bags that are waited for, one after the other


def pool(
    slab: Float[Array, "_ _"],
    rows: Int[Array, "N T L"],
    id_weights: Float[Array, "N T L"] | None,
    width: int,
    interpret: bool = False,
) -> Float[Array, "N T {width}"]:
    """See `pooling.pool`.

    Args:
        slab: a slab on this device, of float32, packed or not.
        rows: row numbers; R or more stands for "no row".
        id_weights: id weights of the rows; None for ones.
        width: numbers of a row.
        interpret: whether Pallas emulates the kernel.
    """
    (samples, bags, length), count = rows.shape, rows.shape[0] * rows.shape[1]
    k = per_line(width) if slab.shape[1] != width else 1
    size = len(slab) * k
    if not (slab.size and rows.size):
        return jnp.zeros((samples, bags, width), slab.dtype)
    most = max(min(_IDS, _NUMBERS // columns(width)), _SUBLANES)
    positions = min(length, most // _SUBLANES)
    whole = _SUBLANES * _GROUPS
    block = max(most // positions // whole, 1) * whole if positions * whole <= most else _SUBLANES
    block = min(block, pl.cdiv(count, _SUBLANES) * _SUBLANES)
    groups = _GROUPS if block % whole == 0 else 1
    ids = block * positions
    grid = pl.cdiv(count, block), pl.cdiv(length, positions)

    def by_block(x: Array, fill: float) -> Array:
        """Numbers of ids, [blocks, parts of bags, 1, ids]."""
        x = x.reshape(count, length)
        padding = [(0, grid[0] * block - count), (0, grid[1] * positions - length)]
        x = jnp.pad(x, padding, constant_values=fill)
        x = x.reshape(grid[0], block, grid[1], positions).swapaxes(1, 2)
        return x.reshape(*grid, 1, ids)

    def kernel(rows: Any, weights: Any, slab: Any, out: Any, read: Any, arrived: Any) -> None:
        def copy(place: Any, row: Any, group: Any) -> Any:
            line = slab.at[pl.ds(jax.lax.div(row, jnp.int32(k)), 1)]
            return pltpu.make_async_copy(line, read.at[pl.ds(place, 1)], arrived.at[group])

        def of_group(group: Any, body: Any) -> None:
            """Calls a function of the place and the row of each id that there is."""
            of_ids = ids // groups

            def one(place: Any, _: Any) -> Any:
                place += group * of_ids
                row = rows[0, 0, 0, place]
                pl.when(row < size)(lambda: body(place, row))
                return _

            jax.lax.fori_loop(0, of_ids, one, None)

        def start(group: Any, _: Any) -> Any:
            of_group(group, lambda place, row: copy(place, row, group).start())
            return _

        def add_bag(bag: Any, _: Any) -> Any:
            def add(position: Any, total: Array) -> Array:
                number = bag * positions + position
                row = rows[0, 0, 0, number]
                found = read[pl.ds(number, 1), :]
                if k > 1:
                    found = pltpu.roll(
                        found, LANES - jax.lax.rem(row, jnp.int32(k)) * (LANES // k), 1
                    )
                if weights is not None:
                    found = found * weights[0, 0, 0, number]
                return total + jnp.where(row < size, found, 0)

            total = jnp.zeros((1, read.shape[1]), read.dtype)
            total = jax.lax.fori_loop(0, positions, add, total)
            out[pl.ds(bag, 1), :] += total[:, :width]
            return _

        def finish(group: Any, _: Any) -> Any:
            of_group(group, lambda place, row: copy(place, row, group).wait())
            bags = block // groups
            return jax.lax.fori_loop(group * bags, (group + 1) * bags, add_bag, _)

        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            out[...] = jnp.zeros_like(out)

        jax.lax.fori_loop(0, groups, start, None)
        jax.lax.fori_loop(0, groups, finish, None)

    of_ids = pl.BlockSpec((1, 1, 1, ids), lambda i, j: (i, j, 0, 0), memory_space=pltpu.SMEM)
    weights = None if id_weights is None else by_block(id_weights.astype(slab.dtype), 0)
    found = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[of_ids, None if weights is None else of_ids, pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec((block, width), lambda i, j: (i, 0)),
        out_shape=jax.ShapeDtypeStruct(
            (count, width), slab.dtype, manual_axis_type=jax.typeof(slab).manual_axis_type
        ),
        scratch_shapes=[
            pltpu.VMEM((ids, slab.shape[1]), slab.dtype),
            pltpu.SemaphoreType.DMA((groups,)),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="pool",
    )(by_block(rows.astype(jnp.int32), size), weights, slab)
    return found.reshape(samples, bags, width)
