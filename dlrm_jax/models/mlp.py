"""Multi-layer perceptrons as the DLRM reference builds and initializes them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float


def _normal(variance: float) -> jax.nn.initializers.Initializer:
    return jax.nn.initializers.normal(variance**0.5)


def at_least_float32(x: Float[Array, "*_"]) -> Float[Array, "*_"]:
    """Casts a low-precision MLP's result, which must not drag what follows down with it."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class MLP(nnx.Module):
    """Linear layers with a ReLU after each, or after all but the last.

    Weights start from N(0, 2 / (fan_in + fan_out)) and biases from N(0, 1 / fan_out)
    (variances), as in the DLRM reference.

    Args:
        widths: width of the input, then of each layer.
        last_relu: whether a ReLU follows the last layer.
        rngs: random number generators of the initial values.
        dtype: type in which the layers compute.
        param_dtype: type of their parameters.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        last_relu: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        count = len(widths) - 1
        self.relus = tuple(last_relu or i + 1 < count for i in range(count))
        self.dtype = dtype
        self.layers = nnx.List(
            nnx.Linear(
                fan_in,
                fan_out,
                kernel_init=_normal(2 / (fan_in + fan_out)),
                bias_init=_normal(1 / fan_out),
                rngs=rngs,
                dtype=dtype,
                param_dtype=param_dtype,
            )
            for fan_in, fan_out in itertools.pairwise(widths)
        )

    def __call__(self, x: Float[Array, "B in"]) -> Float[Array, "B out"]:
        """Applies all layers."""
        for layer, relu in zip(self.layers, self.relus, strict=True):
            x = layer(x)
            x = jax.nn.relu(x) if relu else x
        return x
