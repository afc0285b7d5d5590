"""The native lookups, row updates and interaction as JAX functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlrm_jax.backend import Backend
from dlrm_jax.errors import UserError
from dlrm_jax.native import library

Kernels = Literal["auto", "native", "jax"]
"""Native ones where they are built; only if they are, otherwise an error; never."""

Bags = tuple[Int[Array, "_ _ _"], Float[Array, "_ _ _"] | None, Float[Array, "_ _ _"]]
"""Rows [N, T, L], the weight of each, and the gradient of each bag [N, T, d], which is that of
all its rows, times their weights."""


def available(kernels: str, backend: Backend) -> bool:
    """Whether a program for this backend may use what is native.

    Raises:
        UserError: they are asked for and can't be had.
    """
    if kernels not in get_args(Kernels):
        raise UserError(f"kernels: expected {', '.join(get_args(Kernels))}, got {kernels!r}")
    if kernels == "jax":
        return False
    found = backend.native_kernels and library.load()
    if kernels == "native" and not found:
        raise UserError(
            "kernels: the native ones are not built for this machine and version of jaxlib; run "
            "python -m dlrm_jax.native"
            if backend.native_kernels
            else f"kernels: the native ones are for CPUs, the mesh is of {backend.platform}"
        )
    return found


def pool(
    table: Float[Array, "R d"], rows: Int[Array, "N T L"], weights: Float[Array, "N T L"] | None
) -> Float[Array, "N T d"]:
    """The weighted sum of the rows of every bag; `embedding.exchange.pool`.

    Args:
        table: float32.
        rows: at or past R is none.
        weights: one per row; None for ones.
    """
    shape = jax.ShapeDtypeStruct((*rows.shape[:2], table.shape[1]), table.dtype)
    call = jax.ffi.ffi_call("dlrm_jax_pool", shape)
    return call(table, rows) if weights is None else call(table, rows, weights)


def sgd(
    table: Float[Array, "R d"], rate: float | Float[Array, ""], bags: Sequence[Bags]
) -> Float[Array, "R d"]:
    """``w -= rate · g`` for every occurrence of a row; `embedding.optimizer.SGD`.

    Args:
        table: float32; updated in place where it may be.
        rate: the learning rate.
        bags: rows at or past R are none.
    """
    call = jax.ffi.ffi_call("dlrm_jax_sgd", _like(table), input_output_aliases={0: 0})
    return call(table, jnp.float32(rate), *_flat(bags), weighted=_weighted(bags))


def rowwise_adagrad(
    table: Float[Array, "R d"],
    accumulator: Float[Array, " R"],
    rate: float | Float[Array, ""],
    eps: float,
    bags: Sequence[Bags],
) -> tuple[Float[Array, "R d"], Float[Array, " R"]]:
    """``a += mean(g²); w -= rate · g / (√a + eps)``; `embedding.optimizer.RowWiseAdagrad`.

    Args:
        table: float32; updated in place where it may be, as the accumulator is.
        accumulator: of each row.
        rate: the learning rate.
        eps: of the formula.
        bags: as for `sgd`; g is the sum over all occurrences of a row.
    """
    call = jax.ffi.ffi_call(
        "dlrm_jax_rowwise_adagrad",
        (_like(table), _like(accumulator)),
        input_output_aliases={0: 0, 1: 1},
    )
    table, accumulator = call(
        table,
        accumulator,
        jnp.float32(rate),
        *_flat(bags),
        weighted=_weighted(bags),
        eps=np.float32(eps),
    )
    return table, accumulator


def interact(
    x: Float[Array, "_ _"],
    vectors: Sequence[Float[Array, "n d"]],
    self_interaction: bool,
    columns: bool,
) -> Float[Array, "_ _"]:
    """The dense vector and the products of all pairs; `training.native_model.dot`.

    Args:
        x: the dense vector, float32: [n, d], or [d, n] with ``columns``.
        vectors: the pooled ones, float32.
        self_interaction: with the products of each vector with itself.
        columns: whether x has the samples side by side, as the result then has: [W, n].

    Raises:
        ValueError: the vectors differ in shape.
    """
    samples, dim = x.shape[::-1] if columns else x.shape
    _check_shapes(samples, dim, vectors)
    width = dim + pairs(len(vectors) + 1, self_interaction)
    shape = (width, samples) if columns else (samples, width)
    call = jax.ffi.ffi_call("dlrm_jax_interact", jax.ShapeDtypeStruct(shape, x.dtype))
    return call(x, *vectors, self_interaction=self_interaction, columns=columns)


def interact_back(
    d_z: Float[Array, "W n"],
    x: Float[Array, "d n"],
    vectors: Sequence[Float[Array, "n d"]],
    self_interaction: bool,
) -> tuple[Float[Array, "d n"], list[Float[Array, "n d"]]]:
    """The cotangents of `interact`'s arguments with ``columns``.

    Args:
        d_z: that of its result.
        x: as it was given.
        vectors: as they were given.
        self_interaction: as it was given.

    Raises:
        ValueError: the vectors differ in shape, or the cotangent doesn't fit.
    """
    dim, samples = x.shape
    _check_shapes(samples, dim, vectors)
    wanted = (dim + pairs(len(vectors) + 1, self_interaction), samples)
    if d_z.shape != wanted:
        raise ValueError(f"expected a cotangent of shape {wanted}, got {d_z.shape}")
    call = jax.ffi.ffi_call("dlrm_jax_interact_back", [_like(x), *map(_like, vectors)])
    d_x, *d_vectors = call(d_z, x, *vectors, self_interaction=self_interaction)
    return d_x, d_vectors


def interaction_flops(target: str, products: int, dim: int) -> int:
    """Floating-point operations of a call; 0 of what isn't an interaction.

    Args:
        target: what is called.
        products: of pairs, of all samples.
        dim: width of the vectors.
    """
    return {"dlrm_jax_interact": 2, "dlrm_jax_interact_back": 4}.get(target, 0) * dim * products


def pairs(vectors: int, self_interaction: bool) -> int:
    """How many pairs so many vectors have, those of a vector with itself included or not."""
    return vectors * (vectors - 1) // 2 + (vectors if self_interaction else 0)


def _check_shapes(samples: int, dim: int, vectors: Sequence[Array]) -> None:
    """The kernels would read and write past the ends of others."""
    wrong = [vector.shape for vector in vectors if vector.shape != (samples, dim)]
    if wrong:
        raise ValueError(f"expected pooled vectors of shape {(samples, dim)}, got {wrong[0]}")


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _weighted(bags: Sequence[Bags]) -> bool:
    return any(weights is not None for _, weights, _ in bags)


def _flat(bags: Sequence[Bags]) -> list[Array]:
    """All arrays, in the order in which the native function reads them."""
    return [x for rows, weights, g in bags for x in (rows, g, weights) if x is not None]
