"""Interaction of DLRM's dense vector with the pooled ones (arXiv 1906.00091, section 2.1.3)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def interaction_width(kind: str, dim: int, widths: list[int], self_interaction: bool) -> int:
    """The width of the result, and so of the top MLP's input.

    Args:
        kind: ``"dot"`` or ``"cat"``.
        dim: width of the dense vector.
        widths: widths of the pooled vectors.
        self_interaction: whether to include the product of each vector with itself.
    """
    if kind == "cat":
        return dim + sum(widths)
    return dim + len(_pairs(len(widths) + 1, self_interaction)[0])


def cat(x: Float[Array, "B d"], vectors: list[Float[Array, "B _"]]) -> Float[Array, "B W"]:
    """Concatenates all vectors."""
    return jnp.concatenate([x, *vectors], axis=1)


def dot(
    x: Float[Array, "B d"], vectors: list[Float[Array, "B d"]], self_interaction: bool = False
) -> Float[Array, "B W"]:
    """The dense vector and the dot products of all pairs.

    Args:
        x: the dense vector, T₀.
        vectors: the pooled vectors, T₁, T₂, …
        self_interaction: with the products of each vector with itself.

    Returns:
        ``concat(x, products)``, the products in row-major order of the lower triangle
        of T Tᵀ, as in the reference: (1,0), (2,0), (2,1), (3,0), …
    """
    stacked = jnp.stack([x, *vectors], axis=1)
    return jnp.concatenate([x, _pair_products(stacked, self_interaction)], axis=1)


def _pairs(count: int, self_interaction: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the lower triangle, row by row."""
    return np.tril_indices(count, 0 if self_interaction else -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pair_products(stacked: Float[Array, "B F d"], self_interaction: bool) -> Float[Array, "B P"]:
    """T_i · T_j of the lower triangle.

    The derivative of picking the triangle is a scatter, which takes several times as long as
    all products on a CPU; the backward pass below gathers instead.
    """
    return _forward(stacked, self_interaction)[0]


def _forward(stacked: Array, self_interaction: bool) -> tuple[Array, Array]:
    products = jnp.einsum("bid,bjd->bij", stacked, stacked)
    i, j = _pairs(stacked.shape[1], self_interaction)
    flat = products.reshape(products.shape[0], stacked.shape[1] ** 2)
    return flat[:, i * stacked.shape[1] + j], stacked


def _backward(self_interaction: bool, stacked: Array, cotangent: Array) -> tuple[Array]:
    # d T_i = Σ_j (g_ij + g_ji) T_j, with g on the lower triangle only.
    count = stacked.shape[1]
    i, j = _pairs(count, self_interaction)
    position = np.full((count, count), len(i))  # one past the pairs: a column of zeros
    position[i, j] = position[j, i] = np.arange(len(i))
    padded = jnp.pad(cotangent, ((0, 0), (0, 1)))
    symmetric = padded[:, position.reshape(-1)].reshape(len(cotangent), count, count)
    if self_interaction:
        symmetric = symmetric * (1 + jnp.eye(count, dtype=symmetric.dtype))
    return (jnp.einsum("bij,bjd->bid", symmetric, stacked),)


_pair_products.defvjp(_forward, _backward)
