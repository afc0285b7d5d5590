"""The pooling of bags at the owners of their rows, on one device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.embedding.packed_rows import take
from dlrm_jax.embedding.storage_dtype import decode

# Most bag positions that are gathered one by one, see `_gather_by_position`; more compile slowly.
_POSITIONS = 64


def pool(
    slab: Shaped[Array, "_ _"],
    rows: Int[Array, "N T L"],
    id_weights: Float[Array, "N T L"] | None,
    dtype: np.dtype | None = None,
    width: int | None = None,
) -> Float[Array, "N T _"]:
    """Sums the weighted rows of every bag position, in at least float32; "no row" adds 0.

    Args:
        slab: a slab on this device, in its storage dtype, packed or not.
        rows: row numbers; R or more stands for "no row".
        id_weights: id weights of the rows; None for ones.
        dtype: dtype of the table; None if it is the storage dtype.
        width: numbers of a row; None if it isn't packed.
    """
    kind, width = dtype or slab.dtype, width or slab.shape[1]
    wide = jnp.promote_types(kind, jnp.float32)

    def weighted(stored: Shaped[Array, "N T d"], i: int | Int[Array, ""]) -> Float[Array, "N T d"]:
        vectors = decode(stored, kind).astype(wide)
        return vectors if id_weights is None else vectors * id_weights[:, :, i, None]

    def nth(i: int | Int[Array, ""]) -> Float[Array, "N T d"]:
        return weighted(take(slab, rows[:, :, i], width), i)

    if rows.shape[2] == 1 and rows.shape[1] <= _POSITIONS:
        return weighted(_gather_by_position(slab, rows[:, :, 0], width), 0)
    # A loop over the ids of a bag makes no array of [N, T, L, d], which is slow for long bags.
    return jax.lax.fori_loop(1, rows.shape[2], lambda i, total: total + nth(i), nth(0))


def _gather_by_position(
    slab: Shaped[Array, "_ _"], rows: Int[Array, "N T"], width: int
) -> Shaped[Array, "N T d"]:
    """`packed_rows.take`, on a CPU one bag position after the other.

    One gather for all of them needs a copy afterwards: predictions for 2048 or 8192 samples with
    26 tables x 16 took 3 to 7 % longer, a train step 1 to 2 %. In the loop over long bags one
    gather is much faster, and an accelerator would start many small programs instead of one.
    """

    def by_position(slab: Array, rows: Array) -> Array:
        return jnp.stack([take(slab, rows[:, t], width) for t in range(rows.shape[1])], axis=1)

    def at_once(slab: Array, rows: Array) -> Array:
        return take(slab, rows, width)

    return jax.lax.platform_dependent(slab, rows, cpu=by_position, default=at_once)


def weight_sums(
    ids: Int[Array, "b L"], id_weights: Float[Array, "b L"] | None, dtype: jnp.dtype
) -> Float[Array, " b"]:
    """The sum of the weights of the ids that are present, the denominator of a mean."""
    present = ids >= 0
    weights = present if id_weights is None else jnp.where(present, id_weights, 0)
    return jnp.sum(weights, 1, dtype=dtype)
