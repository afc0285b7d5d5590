"""Layers by native kernels, by which a learner replaces those of `models`.

They have the same parameters and, but for rounding, the same results.

MLPs that compute in bfloat16 are native: XLA's products don't use what the processor has for it.
XLA's products of float32 are as fast as native ones. They are fastest in training if the samples of
DLRM are columns (`mlp_of_columns`), which suits the native interaction, too. Predictions gain
nothing by it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.models.dlrm import DLRM
from dlrm_jax.models.fields import Vectors
from dlrm_jax.models.mlp import MLP, is_plain
from dlrm_jax.native import layers as native
from dlrm_jax.native import library, ops


class NativeMLP(MLP):
    """An MLP in bfloat16 whose layers are one native call, or one each if norms are between them.

    The result is float32, as it was summed.
    """

    def linear(
        self, x: Float[Array, "*B in"], layers: Sequence[nnx.Linear], relus: Sequence[bool]
    ) -> Float[Array, "*B out"]:
        """See `MLP`."""
        arrays = [x for layer in layers for x in (layer.kernel[...], layer.bias)]
        if not layers or any(x is None or x.dtype != jnp.float32 for x in arrays):
            return super().linear(x, layers, relus)
        return native_mlp(x, layers, relus)


class NativeDLRM(DLRM):
    """DLRM with dot products by the native kernel, if they are float32.

    Where the top MLP rounds them to bfloat16 anyway, the kernel does: half as many bytes go to the
    MLP, and come back from it.
    """

    def interact(
        self, x: Float[Array, "B d"], pooled: list[Float[Array, "B d"]]
    ) -> Float[Array, "B W"]:
        """See `DLRM`."""
        if jnp.result_type(x, *pooled) != jnp.float32:
            return super().interact(x, pooled)
        dtype = jnp.bfloat16 if isinstance(self.top, NativeMLP) else jnp.float32
        return dot(x, pooled, self.self_interaction, dtype=dtype)


class NativeDLRMOfColumns(DLRM):
    """`NativeDLRM` for training in float32, with samples as columns."""

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        pooled = [vectors[name] for name in self.names]
        if jnp.result_type(jnp.float32, self.bottom.dtype, *pooled) != jnp.float32:
            return super().__call__(dense, vectors)
        with jax.named_scope("bottom_mlp"):
            # A copy: products that read it transposed are slower.
            x = mlp_of_columns(self.bottom, jax.lax.optimization_barrier(dense.T))
        with jax.named_scope("interaction"):
            z = dot(x.astype(jnp.float32), pooled, self.self_interaction, columns=True)
        with jax.named_scope("top_mlp"):
            logits = mlp_of_columns(self.top, z)[0]
        return logits.astype(jnp.float32)


def use_native_layers(model: nnx.Module, training: bool) -> None:
    """Replaces layers by their native forms, anywhere in a model; parameters stay.

    Subclasses are left as they are: they may compute something else.

    Args:
        model: model to change in place.
        training: whether the model will be differentiated.
    """
    for _, layer in nnx.iter_modules(model):
        if type(layer) is MLP and _has_short_form(layer) and native.supports_bfloat16():
            layer.__class__ = NativeMLP
        if type(layer) is DLRM and layer.interaction == "dot":
            plain = not (layer.bottom.is_regularized or layer.top.is_regularized)
            by_columns = training and plain and not _is_short(layer.bottom)
            layer.__class__ = NativeDLRMOfColumns if by_columns else NativeDLRM


def has_native_layers(model: nnx.Module) -> bool:
    """Whether `use_native_layers` has found something to replace."""
    kinds = (NativeDLRM, NativeDLRMOfColumns, NativeMLP)
    return any(isinstance(layer, kinds) for _, layer in nnx.iter_modules(model))


def is_native(model: nnx.Module) -> bool:
    """Whether all layers of a model are native, so that no activations are XLA's."""
    return type(model) is NativeDLRM and all(
        isinstance(part, NativeMLP) and not part.is_regularized
        for part in (model.bottom, model.top)
    )


def _is_short(mlp: MLP) -> bool:
    """Whether an MLP computes in bfloat16, with parameters in float32."""
    return jnp.dtype(mlp.dtype) == jnp.bfloat16 and jnp.dtype(mlp.param_dtype) == jnp.float32


def _has_short_form(mlp: MLP) -> bool:
    return _is_short(mlp) and all(map(is_plain, mlp.layers))


def native_mlp(
    x: Float[Array, "*B in"], layers: Sequence[nnx.Linear], relus: Sequence[bool]
) -> Float[Array, "*B out"]:
    """Applies layers in bfloat16; see `native.layers.mlp`."""
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    shape = native.Shape(tuple(widths), tuple(relus), bfloat16=True)
    rows = x.reshape(math.prod(x.shape[:-1]), widths[0])
    if rows.dtype != jnp.bfloat16:
        rows = rows.astype(jnp.float32)
    kernels = [layer.kernel[...] for layer in layers]
    biases = [layer.bias[...] for layer in layers if layer.bias is not None]
    return native.mlp(shape, rows, kernels, biases).reshape(*x.shape[:-1], widths[-1])


def dot(
    x: Float[Array, "_ _"],
    vectors: list[Float[Array, "B d"]],
    self_interaction: bool = False,
    columns: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "_ _"]:
    """`models.interaction.dot` by native kernels.

    Args:
        x: dense vectors, float32: [B, d], or [d, B] with ``columns``.
        vectors: pooled vectors, [B, d] float32 each.
        self_interaction: whether to add the products of each vector with itself.
        columns: whether samples are columns in ``x`` and in the result, [B, W] or [W, B].
        dtype: type that the sums of float32 are rounded to, float32 or bfloat16.
    """
    z: Any = _dot(x, vectors, self_interaction, columns, dtype)
    return z


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dot(
    x: Array, vectors: list[Array], self_interaction: bool, columns: bool, dtype: DTypeLike
) -> Array:
    return ops.interact(x, vectors, self_interaction, columns, dtype)


def _dot_forward(
    x: Array, vectors: list[Array], self_interaction: bool, columns: bool, dtype: DTypeLike
) -> tuple[Array, tuple[Array, list[Array]]]:
    return ops.interact(x, vectors, self_interaction, columns, dtype), (x, vectors)


def _dot_backward(
    self_interaction: bool,
    columns: bool,
    dtype: DTypeLike,
    given: tuple[Array, list[Array]],
    cotangent: Array,
) -> tuple[Array, list[Array]]:
    x, vectors = given
    return ops.interact_back(cotangent, x, vectors, self_interaction, columns)


_dot.defvjp(_dot_forward, _dot_backward)


def mlp_of_columns(mlp: MLP, x: Float[Array, "in B"]) -> Float[Array, "out B"]:
    """Applies all layers of an MLP to samples as columns.

    A CPU's products are slow if they transpose their left operand. If samples are rows, it is the
    whole batch, in the gradient of the weights; if they are columns, it would be the weights, and
    a transposed copy of those is made once per step.
    """
    for layer, relu in zip(mlp.layers, mlp.relus, strict=True):
        assert layer.bias is not None
        arrays = (x, layer.kernel[...], layer.bias[...])
        y: Any = _layer(*(array.astype(mlp.dtype) for array in arrays), relu)
        x = y
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer(
    x: Float[Array, "in B"], kernel: Float[Array, "in out"], bias: Float[Array, " out"], relu: bool
) -> Float[Array, "out B"]:
    return _layer_forward(x, kernel, bias, relu)[0]


def _layer_forward(
    x: Array, kernel: Array, bias: Array, relu: bool
) -> tuple[Array, tuple[Array, Array, Array]]:
    if kernel.shape[1] == 1:
        y = jnp.sum(kernel * x, axis=0, keepdims=True)  # a product would go through x by columns
    else:
        y = _transposed(kernel) @ x
    y = y + bias[:, None]
    y = jax.nn.relu(y) if relu else y
    return y, (x, kernel, y)


def _transposed(kernel: Float[Array, "in out"]) -> Float[Array, "out in"]:
    """A transposed copy of weights, which XLA moves out of a loop over samples.

    XLA's own copies, one on each of 8 emulated devices, took 3.2 of some 75 ms of processor time.
    """
    if kernel.dtype == jnp.float32 and library.load():
        return ops.transposed(kernel)
    return jax.lax.optimization_barrier(kernel.T)  # not within the product


def _layer_backward(
    relu: bool, residuals: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, Array, Array]:
    x, kernel, y = residuals
    if relu:
        gradient = jnp.where(y > 0, gradient, 0)
    return kernel @ gradient, jnp.einsum("ib,ob->io", x, gradient), jnp.sum(gradient, axis=1)


_layer.defvjp(_layer_forward, _layer_backward)
