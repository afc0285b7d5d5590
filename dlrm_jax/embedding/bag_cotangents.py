"""Rows and cotangents of bags, from which the gradients of rows are made."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BlockCotangents = tuple[Int[Array, "_ _ _"], Float[Array, "_ _ _"] | None, Float[Array, "_ _ _"]]
"""One block's rows [N, T, L], id weights [N, T, L] or None, and cotangents [N, T, d]."""

Sums = tuple[Int[Array, " K"], Float[Array, "K d"]]
"""Different rows, with numbers past the slab's end for "no row", and their gradients."""


def one_by_one(sums: Sums) -> tuple[BlockCotangents, ...]:
    """Sums as bags of one row each."""
    rows, gradients = sums
    return ((rows[:, None, None], None, gradients[:, None]),)


def expand(
    blocks: Sequence[BlockCotangents],
) -> tuple[Int[Array, " K"], Float[Array, "K d"]]:
    """The row and the gradient of each id: its bag's cotangent times its weight."""
    all_rows, all_gradients = [], []
    for rows, weights, cotangents in blocks:
        shape = (*rows.shape, cotangents.shape[-1])
        gradients = jnp.broadcast_to(cotangents[:, :, None], shape)
        if weights is not None:
            gradients = gradients * weights[..., None]
        all_rows.append(rows.reshape(-1))
        all_gradients.append(gradients.reshape(-1, shape[-1]))
    return jnp.concatenate(all_rows), jnp.concatenate(all_gradients)
