"""Multi-layer perceptrons as the DLRM reference builds and initializes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.errors import UserError

Normalization = Literal["none", "batch", "layer"]


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
        plain: whether `regularize` leaves it as it is, such as an MLP of attention.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        last_relu: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        plain: bool = False,
    ):
        count = len(widths) - 1
        self.relus = tuple(last_relu or i + 1 < count for i in range(count))
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.plain = plain
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

    @property
    def is_regularized(self) -> bool:
        """Whether its hidden layers have a normalization or dropout."""
        return hasattr(self, "norms") or hasattr(self, "dropouts")

    def regularize(self, dropout: float, normalization: Normalization, rngs: nnx.Rngs) -> None:
        """Gives each layer with a ReLU a normalization before it, and dropout behind it.

        Args:
            dropout: share of the outputs that is dropped in training, and 0 for none.
            normalization: ``"batch"``, over the samples, with PyTorch's momentum; ``"layer"``, over
                the outputs of a sample; or ``"none"``.
            rngs: random number generators of the dropout.
        """
        hidden = [layer for layer, relu in zip(self.layers, self.relus, strict=True) if relu]
        options: dict[str, Any] = {"epsilon": 1e-5, "dtype": self.dtype}
        options |= {"param_dtype": self.param_dtype, "rngs": rngs}
        if normalization == "batch":
            made = (nnx.BatchNorm(x.out_features, momentum=0.9, **options) for x in hidden)
            self.norms = nnx.List(made)
        elif normalization == "layer":
            self.norms = nnx.List(nnx.LayerNorm(x.out_features, **options) for x in hidden)
        if dropout:
            self.dropouts = nnx.List(nnx.Dropout(dropout, rngs=rngs) for _ in hidden)

    def __call__(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        """Applies all layers."""
        if not self.is_regularized:
            return self.linear(x, self.layers, self.relus)
        for i, (layer, relu) in enumerate(zip(self.layers, self.relus, strict=True)):
            normalized = relu and hasattr(self, "norms")
            x = self.linear(x, [layer], [relu and not normalized])
            x = jax.nn.relu(self.norms[i](x)) if normalized else x
            x = self.dropouts[i](x) if relu and hasattr(self, "dropouts") else x
        return x

    def linear(
        self, x: Float[Array, "*B in"], layers: Sequence[nnx.Linear], relus: Sequence[bool]
    ) -> Float[Array, "*B out"]:
        """Applies layers with nothing but a ReLU between them."""
        short = jnp.finfo(self.dtype).bits < 32
        for layer, relu in zip(layers, relus, strict=True):
            y = _short_linear(layer, self.dtype, x) if short and is_plain(layer) else layer(x)
            x = jax.nn.relu(y) if relu else y
        return x


def is_plain(layer: nnx.Linear) -> bool:
    """Whether a layer is ``x @ kernel + bias`` and no more, as `MLP` makes it."""
    return type(layer) is nnx.Linear and layer.bias is not None


def _short_linear(layer: nnx.Linear, dtype: Any, x: Array) -> Array:
    """A layer with operands of few bits and sums of float32, also on the way back.

    Without being asked for those sums, XLA computes with longer operands on CPUs, several times
    slower where the processor multiplies the short ones.
    """
    assert layer.bias is not None
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = product(rows, layer.kernel[...], dtype)
    return (y + layer.bias[...]).reshape(*x.shape[:-1], layer.out_features)


def product(
    x: Float[Array, "B in"], kernel: Float[Array, "in out"], dtype: DTypeLike
) -> Float[Array, "B out"]:
    """``x @ kernel`` with operands of a type and sums of at least float32, which it returns.

    Args:
        x: the rows.
        kernel: the matrix.
        dtype: type of the operands; float32 and longer ones leave them as they are.
    """
    if jnp.finfo(dtype).bits >= 32:
        return x @ kernel
    found: Any = _product(x.astype(dtype), kernel.astype(dtype))
    return found


_SHORT = jax.lax.Precision.DEFAULT


def _product_of_short(x: Array, kernel: Array) -> Array:
    return jnp.dot(x, kernel, precision=_SHORT, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _product(x: Float[Array, "B in"], kernel: Float[Array, "in out"]) -> Float[Array, "B out"]:
    return _product_of_short(x, kernel)


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product_of_short(x, kernel), (x, kernel)


def _product_backward(given: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = given
    gradient = gradient.astype(x.dtype)
    d_x = jnp.einsum(
        "bo,io->bi", gradient, kernel, precision=_SHORT, preferred_element_type=jnp.float32
    )
    # XLA has no short form of this product on CPUs, nor, under vmap, a fallback for it. Its
    # factors are short numbers, which no precision rounds.
    d_kernel = jnp.einsum(
        "bi,bo->io", x.astype(jnp.float32), gradient.astype(jnp.float32), precision=_SHORT
    )
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def regularize_mlps(
    model: nnx.Module, dropout: float, normalization: Normalization, rngs: nnx.Rngs
) -> None:
    """Regularizes all MLPs of a model, see `MLP.regularize`; it changes nothing else.

    Raises:
        UserError: there is none with a hidden layer.
    """
    mlps = [x for _, x in nnx.iter_modules(model) if isinstance(x, MLP) and not x.plain]
    if not any(any(mlp.relus) for mlp in mlps):
        name = "dropout" if dropout else "normalization"
        raise UserError(f"{name}: the model has no MLP with a hidden layer; leave it out")
    for mlp in mlps:
        mlp.regularize(dropout, normalization, rngs)
