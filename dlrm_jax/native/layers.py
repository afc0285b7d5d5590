"""Multi-layer perceptrons by the native kernels, as JAX functions with derivatives."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from dlrm_jax.native import library

_PANEL = 32  # see products.h


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a program knows of an MLP.

    Attributes:
        widths: width of the input, then of each layer.
        relus: whether a ReLU follows each layer.
        bfloat16: whether products are of bfloat16 instead of float32.
    """

    widths: tuple[int, ...]
    relus: tuple[bool, ...]
    bfloat16: bool

    @property
    def dtype(self) -> Any:
        """Type of the activations between layers."""
        return jnp.bfloat16 if self.bfloat16 else jnp.float32

    def packed_words(self, both: bool) -> int:
        """Room for the packed weights; with ``both``, for those of the way back, too."""
        found = 0
        for fan_in, fan_out in itertools.pairwise(self.widths):
            found += self._depth(fan_in) * _filled(fan_out)
            found += self._depth(fan_out) * _filled(fan_in) if both else 0
        return found

    def _depth(self, numbers: int) -> int:
        return _filled(numbers) // 2 if self.bfloat16 else numbers

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the native calls."""
        return {
            "widths": np.asarray(self.widths, np.int64),
            "relus": np.asarray(self.relus, np.int64),
            "bfloat16": self.bfloat16,
        }


def supports_bfloat16() -> bool:
    """Whether the library is built, for a processor that multiplies bfloat16."""
    return library.load() and bool(library.functions().DlrmJaxHasBFloat16())


def _filled(numbers: int) -> int:
    return -(-numbers // _PANEL) * _PANEL


def mlp(
    shape: Shape,
    x: Float[Array, "n in"],
    kernels: Sequence[Float[Array, "_ _"]],
    biases: Sequence[Float[Array, " _"]],
) -> Float[Array, "n out"]:
    """All layers of an MLP at once: ``x = x @ kernel + bias``, and a ReLU where one follows.

    It has a gradient, but no derivative of that and none in forward mode.

    Args:
        shape: shape of the MLP.
        x: inputs, float32 or, with ``shape.bfloat16``, bfloat16.
        kernels: weights of each layer, [in, out] float32.
        biases: biases of each layer, [out] float32.

    Returns:
        The last layer's activations, float32 [n, out].

    Raises:
        ValueError: an array has another shape or type.
    """
    return _mlp(shape, x, list(kernels), list(biases))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlp(shape: Shape, x: Array, kernels: list[Array], biases: list[Array]) -> Any:
    return forward(shape, x, pack(shape, kernels), biases)[0]


def _mlp_forward(shape: Shape, x: Any, kernels: Any, biases: Any) -> tuple[Array, Any]:
    kernels, biases = ([each.value for each in given] for given in (kernels, biases))
    packed = pack(shape, kernels, both=True)
    result, *hidden = forward(shape, x.value, packed, biases, both=True, keep=True)
    return result, (x.value, packed, result, hidden, _Asked(x.perturbed))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Asked:
    """Whether the gradient by the input is asked for."""

    by_input: bool


def _mlp_backward(shape: Shape, residuals: Any, d_result: Any) -> Any:
    x, packed, result, hidden, asked = residuals
    if isinstance(d_result, jax.custom_derivatives.SymbolicZero):
        d_result = jnp.zeros(result.shape, jnp.float32)
    sizes = list(itertools.pairwise(shape.widths))
    shapes = [*sizes, *(size[1:] for size in sizes)]
    arrays = [jax.ShapeDtypeStruct(each, jnp.float32) for each in shapes]
    arrays += [jax.ShapeDtypeStruct(x.shape, x.dtype)] if asked.by_input else []
    call = _call("dlrm_jax_mlp_back", arrays)
    found = call(x, packed, result, d_result, *hidden, **shape.attributes)
    count = len(sizes)
    d_x = found[-1] if asked.by_input else None
    return d_x, list(found[:count]), list(found[count : 2 * count])


_mlp.defvjp(_mlp_forward, _mlp_backward, symbolic_zeros=True)


def pack(
    shape: Shape, kernels: Sequence[Float[Array, "_ _"]], both: bool = False
) -> UInt32[Array, " _"]:
    """Weights as the kernels read them: once for all products of a step.

    Args:
        shape: shape of the MLP.
        kernels: weights of each layer.
        both: whether they are packed for the way back, too.
    """
    _check(kernels, list(itertools.pairwise(shape.widths)))
    found = jax.ShapeDtypeStruct((shape.packed_words(both),), jnp.uint32)
    return _call("dlrm_jax_pack", found)(*kernels, **shape.attributes, both=both)


def forward(
    shape: Shape,
    x: Float[Array, "n in"],
    packed: UInt32[Array, " _"],
    biases: Sequence[Float[Array, " _"]],
    both: bool = False,
    keep: bool = False,
) -> Sequence[Float[Array, "n _"]]:
    """The result, and the hidden activations of each layer if they are kept; see `mlp`.

    Args:
        shape: shape of the MLP.
        x: inputs.
        packed: weights, by `pack`.
        biases: biases of each layer.
        both: whether they are packed for the way back, too; see `pack`.
        keep: whether to keep the hidden activations.
    """
    _check(biases, [(width,) for width in shape.widths[1:]])
    if packed.shape != (shape.packed_words(both),):
        raise ValueError(f"expected {shape.packed_words(both)} packed words, got {packed.shape}")
    if x.shape != (len(x), shape.widths[0]) or x.dtype not in (jnp.float32, shape.dtype):
        raise ValueError(
            f"expected {jnp.dtype(shape.dtype)} or float32 of shape [n, {shape.widths[0]}], got "
            f"{x.dtype} of shape {x.shape}"
        )
    arrays = [jax.ShapeDtypeStruct((len(x), shape.widths[-1]), jnp.float32)]
    if keep:
        hidden = shape.widths[1:-1]
        arrays += [jax.ShapeDtypeStruct((len(x), width), shape.dtype) for width in hidden]
    call = _call("dlrm_jax_mlp", arrays)
    return call(x, packed, *biases, **shape.attributes, both=both)


def _call(target: str, results: Any) -> Callable[..., Any]:
    return jax.ffi.ffi_call(target, results, vmap_method="sequential")


def _check(arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> None:
    """Checks weights or biases: the kernels would read beyond others."""
    if len(arrays) != len(shapes):
        raise ValueError(f"expected arrays of {len(shapes)} layers, got {len(arrays)}")
    for array, shape in zip(arrays, shapes, strict=True):
        if array.shape != shape or array.dtype != jnp.float32:
            raise ValueError(
                f"expected float32 of shape {shape}, got {array.dtype} of shape {array.shape}"
            )
