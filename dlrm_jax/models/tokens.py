"""Layers on sets of vectors, or tokens, with parameters of each token's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.mlp import product

EPSILON = 1e-5
"""The number that layer normalizations add to a variance, PyTorch's default."""


class TokenLinear(nnx.Module):
    """yₜ = Wₜ xₜ + bₜ: a linear layer for each token.

    Args:
        tokens: number of tokens, T.
        width: width of a token.
        out: width of a result.
        rngs: random number generators of the initial values.
        dtype: type of the operands of products; sums and results have at least float32.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        out: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        init = jax.nn.initializers.glorot_normal(batch_axis=0)
        self.kernel = nnx.Param(init(rngs.params(), (tokens, width, out)))
        self.bias = nnx.Param(jnp.zeros((tokens, out)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B T in"]) -> Float[Array, "B T out"]:
        """Applies each token's layer."""
        by_token = jax.vmap(lambda x, kernel: product(x, kernel, self.dtype), (1, 0), 1)
        return by_token(x, self.kernel[...]) + self.bias[...]


class TokenNorm(nnx.Module):
    """Layer normalization of each token, with a scale and a bias of its own.

    Args:
        tokens: number of tokens, T.
        width: width of a token, d.
        rngs: random number generators, of which it needs none.
    """

    def __init__(self, tokens: int, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(
            width, epsilon=EPSILON, use_scale=False, use_bias=False, rngs=rngs
        )
        self.scale = nnx.Param(jnp.ones((tokens, width)))
        self.bias = nnx.Param(jnp.zeros((tokens, width)))

    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        """Normalizes."""
        return self.norm(x) * self.scale[...] + self.bias[...]
