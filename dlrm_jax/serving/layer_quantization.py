"""Linear layers in int8: weights with a scale per output, inputs with levels from calibration.

An input x becomes the integer ``a = rint(clip(x * levels, -128 - zero, 127 - zero)) + zero``, and a
layer's output is ``(a @ kernel + bias) * scale``: integers but for the last factor, so that every
processor has the same bits. Adding ``zero`` times the sums of the kernel's columns to the bias
gives that of the trained layer, in units of the scale.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int8, Int32

_MOST = 127
"""Largest weight."""
_MOST_OF_BIAS = 2.0**23
"""Largest bias, without the zero point: it and the largest sum of products fit in 32 bits."""

_LEAST = 1e-30
"""Least width of a range: what is narrower is taken for 0."""


class Levels(NamedTuple):
    """How the inputs of a layer become integers.

    Attributes:
        levels: number of levels of a 1, positive.
        zero: level of 0, from -128 to 127.
    """

    levels: np.float32
    zero: int

    @classmethod
    def of_range(cls, low: float, high: float) -> Levels:
        """The finest levels that hold a range, which is widened to hold 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        if not high - low > _LEAST:
            return cls(np.float32(1), 0)
        levels = np.float32(255 / (high - low))
        return cls(levels, int(np.clip(np.rint(-128 - low * levels), -128, 127)))

    def quantize(self, x: Float32[np.ndarray, "..."]) -> Int8[np.ndarray, "..."]:
        """The integers of some inputs; see the module."""
        low, high = np.float32(-128 - self.zero), np.float32(127 - self.zero)
        return (np.rint(np.clip(x * self.levels, low, high)) + self.zero).astype(np.int8)

    def squared_error(self, x: Float32[np.ndarray, "..."]) -> float:
        """The sum of squared differences of inputs from what their integers stand for."""
        found = (self.quantize(x).astype(np.float32) - self.zero) / self.levels
        return float(np.square(found - x).sum(dtype=np.float64))


class Int8Layer(NamedTuple):
    """The arrays of a layer in int8.

    Attributes:
        kernel: weights, [in, out].
        bias: bias in units of the scale, less ``zero`` times the sums of the kernel's columns.
        scale: value of a 1 of the integers, of each output.
    """

    kernel: Int8[np.ndarray, "in out"]
    bias: Int32[np.ndarray, " out"]
    scale: Float32[np.ndarray, " out"]


def quantize_layer(
    kernel: Float32[np.ndarray, "in out"], bias: Float32[np.ndarray, " out"], levels: Levels
) -> Int8Layer:
    """The nearest layer in int8.

    Args:
        kernel: weights, finite.
        bias: biases, finite.
        levels: levels of the inputs.
    """
    weights, biases, step = kernel.astype(np.float64), bias.astype(np.float64), 1 / levels.levels
    largest = np.max(np.abs(weights), axis=0, initial=0.0)
    # Beside a large bias, weights may be coarser than 8 bits make them.
    scales = np.maximum(largest / _MOST * step, np.abs(biases) / _MOST_OF_BIAS)
    scale = np.where(scales > 0, scales, 1).astype(np.float32)
    found = np.rint(weights / (scale.astype(np.float64) / step))
    integers = np.clip(found, -_MOST, _MOST).astype(np.int8)
    folded = np.rint(biases / scale) - levels.zero * integers.sum(axis=0, dtype=np.int64)
    return Int8Layer(integers, folded.astype(np.int32), scale)
