"""Multi-layer perceptrons as the DLRM reference builds and initializes them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float


def _normal(variance: float) -> jax.nn.initializers.Initializer:
    return jax.nn.initializers.normal(variance**0.5)


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

    def columns(self, x: Float[Array, "in B"]) -> Float[Array, "out B"]:
        """Applies all layers to samples that lie side by side.

        A CPU's products are slow if they have to transpose their left operand. Where samples are
        rows that is the whole batch, in the gradient of the weights; where they are columns it
        would be the weights, of which a transposed copy is made once a step.
        """
        for layer, relu in zip(self.layers, self.relus, strict=True):
            assert layer.bias is not None
            arrays = (x, layer.kernel[...], layer.bias[...])
            y: Any = _layer(*(array.astype(self.dtype) for array in arrays), relu)
            x = y
        return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer(
    x: Float[Array, "in B"], kernel: Float[Array, "in out"], bias: Float[Array, " out"], relu: bool
) -> Float[Array, "out B"]:
    return _forward(x, kernel, bias, relu)[0]


def _forward(
    x: Array, kernel: Array, bias: Array, relu: bool
) -> tuple[Array, tuple[Array, Array, Array]]:
    if kernel.shape[1] == 1:
        y = jnp.sum(kernel * x, axis=0, keepdims=True)  # a product would go through x by columns
    else:
        # A copy, which the barrier keeps out of the product and XLA moves out of the loop.
        y = jax.lax.optimization_barrier(kernel.T) @ x
    y = y + bias[:, None]
    y = jax.nn.relu(y) if relu else y
    return y, (x, kernel, y)


def _backward(
    relu: bool, residuals: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, Array, Array]:
    x, kernel, y = residuals
    if relu:
        gradient = jnp.where(y > 0, gradient, 0)
    return kernel @ gradient, jnp.einsum("ib,ob->io", x, gradient), jnp.sum(gradient, axis=1)


_layer.defvjp(_forward, _backward)
