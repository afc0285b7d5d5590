"""Multi-layer perceptrons by the native kernels, as JAX functions with derivatives."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
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
        """Length of the packed weights; with ``both``, those for the way back, too."""
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
    """Whether the library was built for a processor that multiplies bfloat16."""
    return bool(library.functions().DlrmJaxHasBFloat16())


def _filled(numbers: int) -> int:
    return -(-numbers // _PANEL) * _PANEL


def mlp(
    shape: Shape,
    x: Float[Array, "n in"],
    kernels: Sequence[Float[Array, "_ _"]],
    biases: Sequence[Float[Array, " _"]],
) -> Float[Array, "n out"]:
    """All layers of an MLP at once: ``x = x @ kernel + bias``, and a ReLU where one follows.

    Args:
        shape: shape of the MLP.
        x: inputs, float32 or, with ``shape.bfloat16``, bfloat16.
        kernels: weights of each layer, [in, out] float32.
        biases: biases of each layer, [out] float32.

    Returns:
        The last layer's activations, float32 [n, out].
    """
    return _mlp(shape, x, list(kernels), list(biases))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlp(shape: Shape, x: Array, kernels: list[Array], biases: list[Array]) -> Any:
    return _forward(shape, x, _pack(shape, kernels, False), biases, False, False)[0]


def _mlp_forward(shape: Shape, x: Any, kernels: Any, biases: Any) -> tuple[Array, Any]:
    kernels, biases = ([x.value for x in each] for each in (kernels, biases))
    packed = _pack(shape, kernels, True)
    result, *hidden = _forward(shape, x.value, packed, biases, True, True)
    return result, (x.value, packed, result, hidden, _Known(x.perturbed))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Known:
    """Whether the gradient by the input is asked for."""

    d_x: bool


def _mlp_backward(shape: Shape, residuals: Any, d_result: Any) -> Any:
    x, packed, result, hidden, known = residuals
    sizes = list(itertools.pairwise(shape.widths))
    f32 = jnp.float32
    shapes = [jax.ShapeDtypeStruct(size, f32) for size in sizes]
    shapes += [jax.ShapeDtypeStruct(size[1:], f32) for size in sizes]
    if known.d_x:
        shapes.append(jax.ShapeDtypeStruct(x.shape, f32))
    if isinstance(d_result, jax.custom_derivatives.SymbolicZero):
        d_result = jnp.zeros(d_result.aval.shape, f32)
    call = jax.ffi.ffi_call("dlrm_jax_mlp_back", shapes)
    found = call(x, packed, result, d_result, *hidden, **shape.attributes)
    count = len(sizes)
    d_x = found[2 * count].astype(x.dtype) if known.d_x else None
    return d_x, list(found[:count]), list(found[count : 2 * count])


_mlp.defvjp(_mlp_forward, _mlp_backward, symbolic_zeros=True)


def _pack(shape: Shape, kernels: Sequence[Array], both: bool) -> UInt32[Array, " _"]:
    """Weights as the kernels read them; not for each product anew, but once a step."""
    found = jax.ShapeDtypeStruct((shape.packed_words(both),), jnp.uint32)
    return jax.ffi.ffi_call("dlrm_jax_pack", found)(*kernels, **shape.attributes, both=both)


def _forward(
    shape: Shape, x: Array, packed: Array, biases: Sequence[Array], both: bool, keep: bool
) -> Sequence[Array]:
    shapes = [jax.ShapeDtypeStruct((len(x), shape.widths[-1]), jnp.float32)]
    if keep:
        hidden = shape.widths[1:-1]
        shapes += [jax.ShapeDtypeStruct((len(x), width), shape.dtype) for width in hidden]
    call = jax.ffi.ffi_call("dlrm_jax_mlp", shapes)
    return call(x, packed, *biases, **shape.attributes, both=both)
