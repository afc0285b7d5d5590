"""The native lookups, row updates, initial rows and interaction as JAX functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int, UInt32

from dlrm_jax.backend import Backend
from dlrm_jax.errors import UserError
from dlrm_jax.native import library

Kernels = Literal["auto", "native", "jax"]
"""Use of the native kernels: if they are built; always, or else an error; never."""

BlockGradients = tuple[Int[Array, "_ _ _"], Float[Array, "_ _ _"] | None, Float[Array, "_ _ _"]]
"""Rows [N, T, L], weight of each row, and gradient of each bag [N, T, d]. The gradient of a row is
that of its bag, times its weight.
"""


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
            f"kernels: {library.absence()}"
            if backend.native_kernels
            else f"kernels: the native ones are for CPUs, the mesh is of {backend.platform}"
        )
    return found


def pool(
    table: Float[Array, "R d"], rows: Int[Array, "N T L"], weights: Float[Array, "N T L"] | None
) -> Float[Array, "N T d"]:
    """The weighted sum of the rows of every bag, [N, T, d]; see `embedding.pooling.pool`.

    Args:
        table: rows, [R, d] float32.
        rows: row numbers of each bag, [N, T, L]; R and larger numbers are absent.
        weights: weight of each row, [N, T, L]; None for weights of 1.
    """
    shape = jax.ShapeDtypeStruct((*rows.shape[:2], table.shape[1]), table.dtype)
    call = jax.ffi.ffi_call("dlrm_jax_pool", shape)
    return call(table, rows) if weights is None else call(table, rows, weights)


def sgd(
    table: Float[Array, "R d"], rate: float | Float[Array, ""], blocks: Sequence[BlockGradients]
) -> Float[Array, "R d"]:
    """The table after ``w -= rate · g`` for every occurrence of a row; see `optimizer.SGD`.

    Args:
        table: rows, [R, d] float32; updated in place if XLA can donate it.
        rate: learning rate.
        blocks: gradients; row numbers of R and more are absent.
    """
    call = jax.ffi.ffi_call("dlrm_jax_sgd", _like(table), input_output_aliases={0: 0})
    return call(table, jnp.float32(rate), *_flat(blocks), weighted=_weighted(blocks))


def rowwise_adagrad(
    table: Float[Array, "R d"],
    accumulator: Float[Array, " R"],
    rate: float | Float[Array, ""],
    eps: float,
    blocks: Sequence[BlockGradients],
) -> tuple[Float[Array, "R d"], Float[Array, " R"]]:
    """The table and accumulator after ``a += mean(g²); w -= rate · g / (√a + eps)``.

    See `embedding.optimizer.RowWiseAdagrad`.

    Args:
        table: rows, [R, d] float32; updated in place if XLA can donate it.
        accumulator: accumulator of each row, [R]; updated like the table.
        rate: learning rate.
        eps: eps of the formula.
        blocks: gradients; row numbers of R and more are absent. g is the sum over all occurrences
            of a row.
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
        *_flat(blocks),
        weighted=_weighted(blocks),
        eps=np.float32(eps),
    )
    return table, accumulator


def unique_rows(
    partners: int, none: int, partner: Int[Array, " K"], number: Int[Array, " K"]
) -> tuple[Int[Array, " K"], Int[Array, " _"], Int[Array, " K"]]:
    """The different rows among K, by partner; see `embedding.row_requests.unique`.

    Args:
        partners: number n of partners.
        none: number for "no row".
        partner: partner of each row, int32; n for "no row".
        number: number of each row at its partner, int32, from 0 to less than ``none``.

    Returns:
        Numbers of the different rows, [K]; places where each partner's begin, [n + 1]; and the
        place of each of the K, [K].
    """
    shapes = _like(number), jax.ShapeDtypeStruct((partners + 1,), np.int32), _like(number)
    found, starts, places = jax.ffi.ffi_call("dlrm_jax_unique_rows", shapes)(
        partner, number, none=none
    )
    return found, starts, places


def uniform_rows(
    key: UInt32[Array, "2"],
    pieces: UInt32[Array, "P 7"],
    rows: int,
    width: int,
    dim: int,
    chunk: int,
) -> Float[Array, "R w"]:
    """Initial rows of one device, U(±bound); `embedding.initial_values.initial_values`.

    Args:
        key: data of the key of the seed, of JAX's generator threefry2x32.
        pieces: pieces of tables, one after the other: checksum of the table's name, first row in
            the result, number of rows, modulus, residue, first column, and the bits of the bound,
            a float32. See `embedding.row_split` for modulus and residue. Other rows are zeros.
        rows: number R of rows of the result.
        width: number w of columns of the result.
        dim: width of the tables.
        chunk: number of rows of a table that share a key.
    """
    shape = jax.ShapeDtypeStruct((rows, width), np.float32)
    return jax.ffi.ffi_call("dlrm_jax_uniform_rows", shape)(key, pieces, dim=dim, chunk=chunk)


def interact(
    x: Float[Array, "_ _"],
    vectors: Sequence[Float[Array, "n d"]],
    self_interaction: bool,
    columns: bool,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "_ _"]:
    """The dense vector and the products of all pairs; `training.native_model.dot`.

    Args:
        x: dense vector, float32: [n, d], or [d, n] with ``columns``.
        vectors: pooled vectors, [n, d] float32 each.
        self_interaction: whether to include the products of each vector with itself.
        columns: whether samples are columns in x and in the result.
        dtype: type that the sums of float32 are rounded to, float32 or bfloat16.

    Returns:
        [n, W], or [W, n] with ``columns``.

    Raises:
        ValueError: the vectors differ in shape.
    """
    samples, dim = x.shape[::-1] if columns else x.shape
    _check_shapes(samples, dim, vectors)
    width = dim + pairs(len(vectors) + 1, self_interaction)
    shape = (width, samples) if columns else (samples, width)
    call = jax.ffi.ffi_call("dlrm_jax_interact", jax.ShapeDtypeStruct(shape, dtype))
    return call(x, *vectors, self_interaction=self_interaction, columns=columns)


def interact_back(
    d_z: Float[Array, "_ _"],
    x: Float[Array, "_ _"],
    vectors: Sequence[Float[Array, "n d"]],
    self_interaction: bool,
    columns: bool,
) -> tuple[Float[Array, "_ _"], list[Float[Array, "n d"]]]:
    """The cotangents of x and of the vectors of `interact`.

    Args:
        d_z: cotangent of the result, float32 or bfloat16: [n, W], or [W, n] with ``columns``.
        x: dense vector, as for `interact`.
        vectors: pooled vectors, as for `interact`.
        self_interaction: whether the result includes the products of each vector with itself.
        columns: whether samples are columns in d_z, in x and in its cotangent.

    Raises:
        ValueError: the vectors differ in shape, or the cotangent doesn't fit.
    """
    samples, dim = x.shape[::-1] if columns else x.shape
    _check_shapes(samples, dim, vectors)
    width = dim + pairs(len(vectors) + 1, self_interaction)
    shape = (width, samples) if columns else (samples, width)
    if d_z.shape != shape:
        raise ValueError(f"expected a cotangent of shape {shape}, got {d_z.shape}")
    call = jax.ffi.ffi_call("dlrm_jax_interact_back", [_like(x), *map(_like, vectors)])
    d_x, *d_vectors = call(d_z, x, *vectors, self_interaction=self_interaction, columns=columns)
    return d_x, d_vectors


def transposed(x: Float[Array, "n m"]) -> Float[Array, "m n"]:
    """The transpose of a matrix, as an array of its own.

    Args:
        x: matrix, float32.
    """
    shape = jax.ShapeDtypeStruct(x.shape[::-1], x.dtype)
    return jax.ffi.ffi_call("dlrm_jax_transposed", shape)(x)


def pairs(vectors: int, self_interaction: bool) -> int:
    """The number of pairs of vectors.

    Args:
        vectors: number of vectors.
        self_interaction: whether to include the pairs of each vector with itself.
    """
    return vectors * (vectors - 1) // 2 + (vectors if self_interaction else 0)


def _check_shapes(samples: int, dim: int, vectors: Sequence[Array]) -> None:
    """Checks shapes: on a mismatch the kernels would read and write beyond the ends."""
    wrong = [vector.shape for vector in vectors if vector.shape != (samples, dim)]
    if wrong:
        raise ValueError(f"expected pooled vectors of shape {(samples, dim)}, got {wrong[0]}")


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _weighted(blocks: Sequence[BlockGradients]) -> bool:
    return any(weights is not None for _, weights, _ in blocks)


def _flat(blocks: Sequence[BlockGradients]) -> list[Array]:
    """All arrays, in the order of the native function's arguments."""
    return [x for rows, weights, g in blocks for x in (rows, g, weights) if x is not None]
