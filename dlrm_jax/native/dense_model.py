"""DLRM's dense model by the native kernels, outside of XLA: MLPs and dot interaction."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from dlrm_jax.native import library, ops
from dlrm_jax.native.thread_count import most_threads

_INTEGER, _POINTER = ctypes.c_int64, ctypes.c_void_p
_PRECISIONS = {jnp.dtype(x): i for i, x in enumerate((np.float32, jnp.bfloat16, np.int8))}
"""The numbers of dense_layers.h by the type of the weights."""


class Quantization(NamedTuple):
    """What a layer in int8 has besides weights and biases; see `artifact.dense_note`.

    Attributes:
        scale: value of a 1 of the integers, by output.
        levels: levels of a 1 of the inputs.
        zero: level of an input of 0, from -128 to 127.
    """

    scale: Float32[np.ndarray, " out"]
    levels: float
    zero: int


class Layer(NamedTuple):
    """A linear layer, with a ReLU behind it or without.

    Attributes:
        kernel: weights, [in, out], of float32, bfloat16 or int8.
        bias: biases, [out], of float32, or int32 beside weights of int8.
        relu: whether a ReLU follows.
        quantization: scale, levels and zero point of int8; None for floats.
    """

    kernel: np.ndarray
    bias: Float32[np.ndarray, " out"] | Int32[np.ndarray, " out"]
    relu: bool
    quantization: Quantization | None = None


class _Linear(ctypes.Structure):
    """``Linear`` of dense_layers.h."""

    _fields_ = (
        *((name, _INTEGER) for name in ("fan_in", "out", "relu", "precision")),
        *((name, _POINTER) for name in ("kernel", "bias", "scale")),
        ("levels", ctypes.c_float),
        ("zero", ctypes.c_int32),
        ("packed", _POINTER),
    )


class _Model(ctypes.Structure):
    """``Model`` of dense_model.cc."""

    _fields_ = (
        ("bottoms", _INTEGER),
        ("tops", _INTEGER),
        ("bottom", _POINTER),
        ("top", _POINTER),
        ("vectors", _INTEGER),
        ("columns", _POINTER),
        ("self_interaction", _INTEGER),
    )


class DenseModel:
    """``top(interaction(bottom(dense), vectors))``, with packed weights.

    Several threads may call one object. The logit of a sample is the same bits in any batch, for
    any number of threads.

    Args:
        bottom: layers of the bottom MLP.
        top: layers of the top MLP; the last has one output.
        columns: first column of each vector that interacts; each is as wide as ``bottom``'s output.
        self_interaction: whether to include the product of each vector with itself.

    Raises:
        ValueError: arrays have other types, or their shapes don't fit each other.
    """

    def __init__(
        self,
        bottom: Sequence[Layer],
        top: Sequence[Layer],
        columns: Sequence[int],
        self_interaction: bool,
    ):
        self._given = tuple(bottom), tuple(top), tuple(columns), self_interaction
        bottoms, tops = _widths(bottom), _widths(top)
        self.dim = bottoms[-1]
        """Numbers of a vector that interacts."""
        self.dense_features = bottoms[0]
        """Number of dense features."""
        width = self.dim + ops.pairs(len(columns) + 1, self_interaction)
        if tops[0] != width or tops[-1] != 1:
            raise ValueError(
                f"expected a top MLP of {width} inputs and 1 output, got {tops[0]} and {tops[-1]}"
            )
        if min(columns, default=0) < 0:
            raise ValueError(f"expected columns from 0 on, got {[*columns]}")
        self._columns = np.asarray(columns, np.int64)
        self._width = max(columns, default=-self.dim) + self.dim
        self._kept: list[Any] = []  # what the description has the addresses of
        self._model = _Model(
            len(bottom),
            len(top),
            self._described(bottom),
            self._described(top),
            len(columns),
            self._columns.ctypes.data,
            self_interaction,
        )
        self._function = library.functions().DlrmJaxDenseModel
        self._function.argtypes = [*[_POINTER] * 3, *[_INTEGER] * 2, _POINTER, _INTEGER]
        self._function.restype = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies pack their own weights, as the description has addresses of this object's."""
        return DenseModel, self._given

    def __call__(
        self,
        dense: Float32[np.ndarray, "n D"],
        vectors: Float32[np.ndarray, "n W"],
        out: Float32[np.ndarray, " n"],
        threads: int,
    ) -> None:
        """Writes the logits; Python's other threads run meanwhile.

        Args:
            dense: dense features, contiguous.
            vectors: vectors of all lookups side by side, contiguous.
            out: logits, contiguous.
            threads: most threads to use, this one included; few samples use one.

        Raises:
            ValueError: an array has another shape or dtype, or isn't contiguous; or there are no
                threads.
        """
        threads = most_threads(threads)
        count, width = vectors.shape
        _check("dense", dense, (count, self.dense_features))
        _check("vectors", vectors, (count, max(width, self._width)))
        _check("out", out, (count,))
        self._function(
            ctypes.addressof(self._model),
            dense.ctypes.data,
            vectors.ctypes.data,
            count,
            width,
            out.ctypes.data,
            threads,
        )

    def _described(self, layers: Sequence[Layer]) -> int:
        """The address of the description of an MLP, the weights of which are packed."""
        found = (_Linear * len(layers))(*map(self._packed, layers))
        self._kept.append(found)
        return ctypes.addressof(found)

    def _packed(self, layer: Layer) -> _Linear:
        """The description of a layer, the weights of which are packed."""
        precision = _PRECISIONS[layer.kernel.dtype]
        kernel = np.ascontiguousarray(layer.kernel)
        if kernel.dtype == jnp.bfloat16:
            kernel = kernel.astype(np.float32)
        bias, own = np.array(layer.bias), layer.quantization
        scale = np.array(own.scale) if own else np.zeros(0, np.float32)
        if own:  # inputs are 128 larger there: unsigned bytes, which processors multiply
            bias -= 128 * kernel.sum(axis=0, dtype=np.int32)
        found = _Linear(*kernel.shape, layer.relu, precision, kernel.ctypes.data, bias.ctypes.data)
        found.scale = scale.ctypes.data
        found.levels, found.zero = (own.levels, own.zero) if own else (1, 0)
        words, pack = library.functions().DlrmJaxPackedWords, library.functions().DlrmJaxPackLayer
        words.argtypes, words.restype = [_POINTER], _INTEGER
        pack.argtypes, pack.restype = [_POINTER], None
        packed = _lines(words(ctypes.addressof(found)))
        self._kept += [bias, scale, packed]
        found.packed = packed.ctypes.data
        pack(ctypes.addressof(found))
        found.kernel = None  # it isn't read again
        return found


def _widths(layers: Sequence[Layer]) -> list[int]:
    """The width of an MLP's input and of each layer, which fit each other."""
    if not layers:
        raise ValueError("expected at least one layer, got none")
    for layer in layers:
        _check_layer(layer)
    for before, after in itertools.pairwise(layers):
        if before.kernel.shape[1] != after.kernel.shape[0]:
            raise ValueError(
                f"expected layers that fit each other, got kernels of shape "
                f"{before.kernel.shape} and {after.kernel.shape}"
            )
    return [layers[0].kernel.shape[0], *(len(layer.bias) for layer in layers)]


def _check_layer(layer: Layer) -> None:
    """Checks types and shapes of a layer's arrays."""
    kernel, bias, own = layer.kernel, layer.bias, layer.quantization
    type_of_bias = np.int32 if own else np.float32
    is_known = kernel.dtype in _PRECISIONS and (kernel.dtype == np.int8) == (own is not None)
    if not is_known or bias.dtype != type_of_bias or kernel.ndim != 2 or bias.ndim != 1:
        raise ValueError(
            f"expected kernels [in, out] and biases [out] of float32, or kernels of bfloat16, or "
            f"of int8 with biases of int32 and a quantization, got {kernel.dtype} of shape "
            f"{kernel.shape} and {bias.dtype} of shape {bias.shape}"
        )
    if bias.shape != kernel.shape[1:] or not len(bias):
        raise ValueError(
            f"expected a bias for each output, got a kernel of shape {kernel.shape} and a bias of "
            f"shape {bias.shape}"
        )
    if own and (own.scale.shape != bias.shape or own.scale.dtype != np.float32):
        raise ValueError(
            f"expected a float32 scale for each output, got {own.scale.dtype} of shape "
            f"{own.scale.shape} and a bias of shape {bias.shape}"
        )


def _check(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Checks what the native function wouldn't: it would read and write beyond the ends."""
    if array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ValueError(
            f"{name}: expected contiguous float32 of shape {shape}, got {array.dtype} of shape "
            f"{array.shape}"
        )


def _lines(words: int) -> np.ndarray:
    """An array that begins with a cache line."""
    memory = np.empty(words + 16, np.uint32)
    begin = -memory.ctypes.data % 64 // 4
    return memory[begin : begin + words]
