"""What the manifest says of DLRM's dense model, which native code runs without a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Precision = Literal["float32", "bfloat16", "int8"]
"""The type in which a layer's products are; sums are float32, or int32 of int8."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by name."""

Arrays = Mapping[str, tuple[tuple[int, ...], str]]
"""Shapes and types by name."""

MOST_INPUTS = 2**15
"""Most inputs of a layer in int8: sums of more products may not fit in 32 bits."""


@dataclasses.dataclass(frozen=True)
class QuantizationNote:
    """How a layer in int8 computes.

    Its inputs x become integers ``a = rint(clip(x * levels, -128 - zero, 127 - zero)) + zero``. Its
    outputs are ``(a @ kernel + bias) * scale``, with a ReLU before the scale.

    Attributes:
        scale: name of the array that has the value of a 1 of the integers, float32 [out].
        levels: name of the array that has the levels of a 1 of the inputs, float32 [1].
        zero: name of the array that has the level of an input of 0, int32 [1].
    """

    scale: str
    levels: str
    zero: str


@dataclasses.dataclass(frozen=True)
class LinearNote:
    """A linear layer, perhaps with a ReLU behind it.

    Attributes:
        kernel: name of its weights, [in, out], whose type is that of the precision.
        bias: name of its biases, [out], float32, or int32 of int8.
        relu: whether a ReLU follows.
        precision: type of its products.
        quantization: names of the other arrays of a layer in int8; None for others.
    """

    kernel: str
    bias: str
    relu: bool
    precision: Precision = "float32"
    quantization: QuantizationNote | None = None

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of its arrays."""
        own = self.quantization
        return (self.kernel, self.bias, *((own.scale, own.levels, own.zero) if own else ()))


@dataclasses.dataclass(frozen=True)
class DenseNote:
    """``top(interaction(bottom(dense), vectors))``, with dot products; what the program computes.

    Attributes:
        bottom: layers of the bottom MLP.
        top: layers of the top MLP; the last one has one output.
        vectors: names of the lookups whose vectors interact, in their order.
        self_interaction: whether the product of each vector with itself is among the pairs.
    """

    bottom: tuple[LinearNote, ...]
    top: tuple[LinearNote, ...]
    vectors: tuple[str, ...]
    self_interaction: bool

    @property
    def precision(self) -> Precision:
        """The shortest type of the products of any layer."""
        found = {layer.precision for layer in (*self.bottom, *self.top)}
        return next(x for x in ("int8", "bfloat16", "float32") if x in found)

    @property
    def quantizations(self) -> tuple[QuantizationNote, ...]:
        """How the layers in int8 compute, in their order."""
        found = (layer.quantization for layer in (*self.bottom, *self.top))
        return tuple(x for x in found if x)

    def check(self, dense_features: int, layers: Arrays, vectors: Shapes) -> None:
        """Checks that shapes fit each other: native code would read beyond the ends.

        Args:
            dense_features: number of dense features.
            layers: shapes and types of the arrays of the dense model.
            vectors: shape of an example's vectors, by lookup.

        Raises:
            ValueError: they don't, or an array or lookup isn't there.
        """
        dim = _out("bottom", self.bottom, dense_features, layers)
        for name in self.vectors:
            if vectors.get(name) != (dim,):
                raise ValueError(
                    f"dense_layers: expected a lookup {name!r} of one vector of {dim} numbers"
                )
        count = len(self.vectors) + 1
        pairs = count * (count + 1 if self.self_interaction else count - 1) // 2
        if _out("top", self.top, dim + pairs, layers) != 1:
            raise ValueError("dense_layers: expected a last layer of one output")


def noted_fields(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Fields for JSON, without what layers in float32 don't have.

    So manifests of float32 are as earlier versions wrote them.
    """
    own = {"precision": "float32", "quantization": None}
    return {name: value for name, value in fields if name not in own or value != own[name]}


def _out(mlp: str, notes: tuple[LinearNote, ...], width: int, layers: Arrays) -> int:
    """The width of an MLP's output, whose input has a width."""
    if not notes:
        raise ValueError(f"dense_layers: expected layers of the {mlp} MLP, got none")
    for note in notes:
        bias = "int32" if note.precision == "int8" else "float32"
        kernel, biases = layers.get(note.kernel), layers.get(note.bias)
        out = kernel[0][1] if kernel and len(kernel[0]) == 2 else 0
        if kernel != ((width, out), note.precision) or biases != ((out,), bias) or not out:
            raise ValueError(
                f"dense_layers: expected layers {note.kernel!r} of {note.precision}[{width}, n] "
                f"and {note.bias!r} of {bias}[n], got {_text(kernel)} and {_text(biases)}"
            )
        _check_quantization(note, width, out, layers)
        width = out
    return width


def _check_quantization(note: LinearNote, width: int, out: int, layers: Arrays) -> None:
    """Checks that a layer has what its precision needs."""
    own = note.quantization
    if (note.precision == "int8") != (own is not None):
        raise ValueError(
            f"dense_layers: expected a quantization of layers in int8 alone, {note.kernel!r} in "
            f"{note.precision} has {own}"
        )
    if own is None:
        return
    if width > MOST_INPUTS:
        raise ValueError(
            f"dense_layers: expected at most {MOST_INPUTS:,} inputs of a layer in int8, "
            f"{note.kernel!r} has {width:,}"
        )
    wanted = {
        own.scale: ((out,), "float32"),
        own.levels: ((1,), "float32"),
        own.zero: ((1,), "int32"),
    }
    for name, array in wanted.items():
        if layers.get(name) != array:
            raise ValueError(
                f"dense_layers: expected a layer {name!r} of {_text(array)}, got "
                f"{_text(layers.get(name))}"
            )


def _text(array: tuple[tuple[int, ...], str] | None) -> str:
    """A shape and type, such as ``float32[13, 64]``."""
    return f"{array[1]}{[*array[0]]}" if array else "none"
