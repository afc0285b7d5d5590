"""DLRM's dense model by the native kernels, outside of XLA: MLPs and dot interaction."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from dlrm_jax.native import library, ops
from dlrm_jax.native.layers import Shape
from dlrm_jax.native.thread_count import most_threads

_INTEGER, _POINTER = ctypes.c_int64, ctypes.c_void_p


class Layer(NamedTuple):
    """A linear layer, with a ReLU behind it or without.

    Attributes:
        kernel: weights, [in, out].
        bias: biases, [out].
        relu: whether a ReLU follows.
    """

    kernel: Float32[np.ndarray, "in out"]
    bias: Float32[np.ndarray, " out"]
    relu: bool


class _Mlp(ctypes.Structure):
    """``Mlp`` of dense_model.cc."""

    _fields_ = (
        ("layers", _INTEGER),
        ("widths", _POINTER),
        ("relus", _POINTER),
        ("biases", _POINTER),
        ("packed", _POINTER),
    )


class _Model(ctypes.Structure):
    """``Model`` of dense_model.cc."""

    _fields_ = (
        ("bottom", _Mlp),
        ("top", _Mlp),
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
        ValueError: arrays aren't float32, or their shapes don't fit each other.
    """

    def __init__(
        self,
        bottom: Sequence[Layer],
        top: Sequence[Layer],
        columns: Sequence[int],
        self_interaction: bool,
    ):
        self._given = tuple(bottom), tuple(top), tuple(columns), self_interaction
        bottoms, tops = _shape(bottom), _shape(top)
        self.dim = bottoms.widths[-1]
        """Numbers of a vector that interacts."""
        self.dense_features = bottoms.widths[0]
        """Number of dense features."""
        width = self.dim + ops.pairs(len(columns) + 1, self_interaction)
        if tops.widths[0] != width or tops.widths[-1] != 1:
            raise ValueError(
                f"expected a top MLP of {width} inputs and 1 output, got {tops.widths[0]} and "
                f"{tops.widths[-1]}"
            )
        if min(columns, default=0) < 0:
            raise ValueError(f"expected columns from 0 on, got {[*columns]}")
        self._columns = np.asarray(columns, np.int64)
        self._width = max(columns, default=-self.dim) + self.dim
        self._kept: list[Any] = []  # what the description has the addresses of
        self._model = _Model(
            self._described(bottom, bottoms),
            self._described(top, tops),
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

    def _described(self, layers: Sequence[Layer], shape: Shape) -> _Mlp:
        """The description of an MLP, the weights of which are packed."""
        kernels = [np.ascontiguousarray(layer.kernel) for layer in layers]
        biases = [np.array(layer.bias) for layer in layers]
        widths, relus = np.asarray(shape.widths, np.int64), np.asarray(shape.relus, np.int64)
        packed, of_biases = _lines(shape.packed_words(both=False)), _addresses(biases)
        self._kept += [biases, widths, relus, packed, of_biases]
        pointers = (x.ctypes.data for x in (widths, relus, of_biases, packed))
        found = _Mlp(len(layers), *pointers)
        # Held until the call has ended: an address keeps no array alive, and other threads run.
        of_kernels = _addresses(kernels)
        pack = library.functions().DlrmJaxPackLayers
        pack.argtypes, pack.restype = [_POINTER] * 3, None
        pack(ctypes.addressof(found), of_kernels.ctypes.data, packed.ctypes.data)
        del of_kernels
        return found


def _shape(layers: Sequence[Layer]) -> Shape:
    """The shape of an MLP whose layers fit each other."""
    if not layers:
        raise ValueError("expected at least one layer, got none")
    for layer in layers:
        for array, axes in ((layer.kernel, 2), (layer.bias, 1)):
            if array.dtype != np.float32 or array.ndim != axes:
                raise ValueError(
                    f"expected kernels [in, out] and biases [out] of float32, got {array.dtype} of "
                    f"shape {array.shape}"
                )
        if layer.bias.shape != layer.kernel.shape[1:] or not len(layer.bias):
            raise ValueError(
                f"expected a bias for each output, got a kernel of shape {layer.kernel.shape} and "
                f"a bias of shape {layer.bias.shape}"
            )
    for before, after in itertools.pairwise(layers):
        if before.kernel.shape[1] != after.kernel.shape[0]:
            raise ValueError(
                f"expected layers that fit each other, got kernels of shape "
                f"{before.kernel.shape} and {after.kernel.shape}"
            )
    widths = (layers[0].kernel.shape[0], *(len(layer.bias) for layer in layers))
    return Shape(widths, tuple(layer.relu for layer in layers), bfloat16=False)


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


def _addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray([array.ctypes.data for array in arrays], np.uint64)
