"""The pooled lookup as a Pallas kernel for GPUs, by Triton; `pooling.pool` says what it computes.

A program has one bag position of one sample. It reads the rows of several ids at a time and adds
them in registers: the vectors of single ids are never written, and a bag is gone through once.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.embedding.storage_dtype import decode

# Numbers that a warp reads at a time: 16 of each thread are under way together.
_NUMBERS = 512


def pool(
    slab: Shaped[Array, "R d"],
    rows: Int[Array, "N T L"],
    id_weights: Float[Array, "N T L"] | None,
    dtype: np.dtype | None = None,
    interpret: bool = False,
) -> Float[Array, "N T d"]:
    """See `pooling.pool`.

    Args:
        slab: a slab on this device, in its storage dtype.
        rows: row numbers; R or more stands for "no row".
        id_weights: id weights of the rows; None for ones.
        dtype: dtype of the table; None if it is the storage dtype.
        interpret: whether a CPU emulates the GPU.
    """
    (size, width), (samples, bags, length) = slab.shape, rows.shape
    kind = np.dtype(dtype or slab.dtype)
    wide = jnp.promote_types(kind, jnp.float32)
    columns = pl.next_power_of_2(width)
    ids = min(max(_NUMBERS // columns, 1), pl.next_power_of_2(length))
    if not (size and width and samples * bags):
        return jnp.zeros((samples, bags, width), wide)

    def kernel(slab: Any, rows: Any, weights: Any, out: Any) -> None:
        bag = pl.program_id(0)
        column = jax.lax.broadcasted_iota(jnp.int32, (ids, columns), 1)
        number = jax.lax.broadcasted_iota(jnp.int32, (ids,), 0)

        def add(turn: Any, total: Array) -> Array:
            inside = turn * ids + number < length
            place = bag * length + turn * ids + number
            row = plgpu.load(rows.at[place], mask=inside, other=size)
            present = row < size
            mask = present[:, None] & (column < width)
            own = jnp.broadcast_to(row[:, None], mask.shape)
            stored = plgpu.load(slab.at[own, column], mask=mask, other=0)
            vectors = decode(stored, kind).astype(wide)
            if weights is not None:
                weight = plgpu.load(weights.at[place], mask=inside, other=0)
                vectors *= weight.astype(wide)[:, None]
            return total + vectors

        # One sum for each of the ids that are read at a time: no thread waits for another's.
        start = jnp.zeros((ids, columns), wide)
        total = jax.lax.fori_loop(0, pl.cdiv(length, ids), add, start).sum(axis=0)
        column = jax.lax.broadcasted_iota(jnp.int32, (columns,), 0)
        own = jnp.full(column.shape, bag)
        plgpu.store(out.at[own, column], total, mask=column < width)

    flat = None if id_weights is None else id_weights.reshape(-1)
    found = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((samples * bags, width), wide),
        grid=(samples * bags,),
        compiler_params=plgpu.CompilerParams(num_warps=1),
        interpret=interpret,
        name="pool",
    )(slab, rows.reshape(-1), flat)
    return found.reshape(samples, bags, width)
