"""Stochastic rounding of bfloat16 tables: on average, no update is lost.

An update smaller than half the distance between two bfloat16 numbers vanishes if it is rounded to
the nearest; rounded up with the probability of its share of that distance, it counts in full on
average (Gupta et al., 2015, "Deep learning with limited numerical precision"). The random bits
depend on the step, the table, its row and column alone, not on mesh or plan.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float32, Int, UInt16

from dlrm_jax.embedding import row_split
from dlrm_jax.embedding.slab import Slab


def round_randomly(
    values: Float32[Array, "K d"], bits: UInt16[Array, "K d"]
) -> BFloat16[Array, "K d"]:
    """Rounds each value to one of its two neighbours, more likely to the nearer one.

    Args:
        values: new values, [K, d]; one that isn't finite is kept.
        bits: uniformly distributed bits, [K, d].
    """
    # bfloat16 lacks the lower half of a float32. Noise of 16 bits makes that half carry into the
    # upper half with a probability of its share.
    noisy = jax.lax.bitcast_convert_type(values, jnp.uint32) + bits.astype(jnp.uint32)
    upper = jax.lax.bitcast_convert_type((noisy >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(values), upper, values.astype(jnp.bfloat16))


def bits_of_rows(
    slab: Slab, rows: Int[Array, " K"], step: Int[Array, ""], shard: int | Int[Array, ""]
) -> UInt16[Array, "K d"]:
    """Random bits for a shard's columns of its rows.

    Args:
        slab: slab of the rows.
        rows: row numbers in the slab on this shard, [K]; the bits of a number past its end are
            unused.
        step: number of updates done before this one.
        shard: number of the shard; 0 if the slab isn't sharded.
    """
    starts, moduli, residues, names = (jnp.asarray(x)[shard] for x in _pieces(slab))
    piece = jnp.searchsorted(starts, rows, side="right") - 1
    table_row = row_split.table_row(rows - starts[piece], moduli[piece], residues[piece])

    def bits(name: Array, row: Array) -> Array:
        # Not the default generator, which may differ from backend to backend.
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), step)
        key = jax.random.fold_in(jax.random.fold_in(key, name), row)
        return jax.random.bits(key, (slab.dim,), jnp.uint16)

    whole = jax.vmap(bits)(names[piece], table_row)
    if slab.split != "columns":
        return whole
    return jax.lax.dynamic_slice_in_dim(whole, shard * slab.width, slab.width, axis=1)


def _pieces(slab: Slab) -> tuple[np.ndarray, ...]:
    """Start, modulus, residue and hash of the name of each shard's pieces, by row number."""
    found: list[list[tuple[int, ...]]] = [[] for _ in range(slab.shards)]
    for piece, start in slab.on_shards:
        if piece.rows(slab.tables[piece.table].rows):  # otherwise another may start there, too
            name = zlib.crc32(piece.table.encode())
            found[piece.shard or 0].append((start, piece.modulus, piece.residue, name))
    most = max(map(len, found))
    padding = (slab.rows, 1, 0, 0)  # starts past the last row
    table = [sorted(pieces) + [padding] * (most - len(pieces)) for pieces in found]
    columns = np.array(table, np.int64).transpose(2, 0, 1)
    return (*columns[:3].astype(np.int32), columns[3].astype(np.uint32))
