"""What the manifest says of DLRM's dense model, which native code runs without a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by name."""


@dataclasses.dataclass(frozen=True)
class LinearNote:
    """A linear layer in float32, perhaps with a ReLU behind it.

    Attributes:
        kernel: name of its weights, [in, out].
        bias: name of its biases, [out].
        relu: whether a ReLU follows.
    """

    kernel: str
    bias: str
    relu: bool


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

    def check(self, dense_features: int, layers: Shapes, vectors: Shapes) -> None:
        """Checks that shapes fit each other: native code would read beyond the ends.

        Args:
            dense_features: number of dense features.
            layers: shapes of the arrays of float32.
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


def _out(mlp: str, notes: tuple[LinearNote, ...], width: int, layers: Shapes) -> int:
    """The width of an MLP's output, whose input has a width."""
    if not notes:
        raise ValueError(f"dense_layers: expected layers of the {mlp} MLP, got none")
    for note in notes:
        kernel, bias = layers.get(note.kernel, ()), layers.get(note.bias, ())
        if len(kernel) != 2 or kernel != (width, *bias) or not kernel[1]:
            raise ValueError(
                f"dense_layers: expected float32 layers {note.kernel!r} of shape [{width}, n] and "
                f"{note.bias!r} of shape [n], got shapes {[*kernel]} and {[*bias]}"
            )
        width = kernel[1]
    return width
