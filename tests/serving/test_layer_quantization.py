"""Quantized layers against float64, and levels against the inputs that they are for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dlrm_jax.artifact.dense_note import LinearNote, QuantizationNote
from dlrm_jax.serving.calibration import Calibration
from dlrm_jax.serving.dense_function import linear
from dlrm_jax.serving.layer_quantization import Levels, quantize_layer

NOTE = LinearNote("k", "b", True, "int8", QuantizationNote("s", "l", "z"))
numbers = st.floats(-1000, 1000, width=32)


@settings(deadline=None, max_examples=60)
@given(low=numbers, high=numbers, x=arrays.arrays(np.float32, 13, elements=numbers))
def test_levels_hold_their_range(low: float, high: float, x: np.ndarray):
    low, high = min(low, high), max(low, high)
    assume(max(high, 0) - min(low, 0) > 1e-30)  # narrower ranges are taken for 0
    found = Levels.of_range(low, high)
    assert found.quantize(np.zeros(1, np.float32)) == found.zero, "0 is exact"
    step = 1 / np.float64(found.levels)
    meant = (found.quantize(x).astype(np.float64) - found.zero) * step
    inside = (x >= low) & (x <= high)
    assert np.all(np.abs(meant - x)[inside] <= (1 + 1e-5) * step), "half a level, and that of 0"
    assert np.all((meant >= min(low, 0) - step) & (meant <= max(high, 0) + step)), "clipped"


@pytest.mark.parametrize("shape", [(1, 1), (13, 2), (367, 31), (23, 1)])
def test_a_layer_is_near_the_trained_one(shape: tuple[int, int]):
    rng = np.random.default_rng(shape[0])
    kernel, bias = (rng.normal(0, 0.3, x).astype(np.float32) for x in (shape, shape[1:]))
    levels = Levels.of_range(-1, 3)
    layer = quantize_layer(kernel, bias, levels)
    assert (layer.kernel.dtype, layer.bias.dtype, layer.scale.dtype) == (
        np.int8, np.int32, np.float32,
    )  # fmt: skip
    assert np.abs(layer.kernel).max(axis=0).tolist() == [127] * shape[1]
    scale = layer.scale.astype(np.float64)
    weights = layer.kernel * scale * np.float64(levels.levels)
    assert np.all(np.abs(weights - kernel) <= 0.5001 * scale * levels.levels)
    folded = (layer.bias + levels.zero * layer.kernel.sum(axis=0, dtype=np.int64)) * scale
    assert np.all(np.abs(folded - bias) <= 0.5001 * scale)
    # The function of JAX computes this, with the exact sums of integers.
    x = rng.uniform(-2, 4, (29, shape[0])).astype(np.float32)
    integers = levels.quantize(x).astype(np.int64)
    sums = np.maximum(integers @ layer.kernel.astype(np.int64) + layer.bias, 0)
    found = {"k": layer.kernel, "b": layer.bias, "s": layer.scale}
    found |= {"l": np.array([levels.levels]), "z": np.array([levels.zero], np.int32)}
    jaxs = {name: jnp.asarray(array) for name, array in found.items()}
    np.testing.assert_array_equal(
        linear(NOTE, jaxs, jnp.asarray(x)), sums.astype(np.float32) * layer.scale
    )


@pytest.mark.parametrize("bias", [0.0, 1e-30, 1e4, -3e9])
def test_biases_beside_small_weights(bias: float):
    """Weights of 0, and those that a bias is far above: their integers fit in 32 bits."""
    kernel = np.array([[0.0, 1e-6], [0.0, -1e-6]], np.float32)
    levels = Levels.of_range(0, 1)
    layer = quantize_layer(kernel, np.full(2, bias, np.float32), levels)
    assert np.all(np.isfinite(layer.scale) & (layer.scale > 0))
    folded = layer.bias + levels.zero * layer.kernel.sum(axis=0, dtype=np.int64)
    assert np.abs(folded).max() <= 2**23 + 1
    np.testing.assert_allclose(folded * layer.scale.astype(np.float64), bias, rtol=1e-5, atol=1e-25)


@pytest.mark.parametrize("low_high", [(0.0, 0.0), (0.0, 1e-38), (np.inf, -np.inf)])
def test_ranges_without_width(low_high: tuple[float, float]):
    assert Levels.of_range(*low_high).levels > 0


def test_calibration_clips_what_is_rare():
    rng = np.random.default_rng(0)
    x = rng.exponential(1, (8192, 37)).astype(np.float32)
    x[7, 3] = 400
    found = Calibration({"k": x}).levels(NOTE)
    assert found.zero == -128, "there are no negative inputs"
    assert 5 < 255 / found.levels < 100
    everything = Levels.of_range(0, 400)
    assert found.squared_error(x[8:]) < everything.squared_error(x[8:]) / 10
    x[2, 1] = np.nan
    assert Calibration({"k": x}).levels(NOTE) == found


@pytest.mark.parametrize("width", [64, 512])
def test_levels_do_not_depend_on_the_order_of_units(width: int):
    """A step over all numbers would meet the same units in each row."""
    x = np.random.default_rng(0).random((8192, width)).astype(np.float32)
    x[:, 1::2] *= 8
    found = Calibration({"k": x}).levels(NOTE)
    assert 255 / found.levels > 6, "the larger half isn't clipped"
    assert found == Calibration({"k": x[:, ::-1]}).levels(NOTE)
    assert found == Calibration({"k": x[:, np.arange(width) ^ 1]}).levels(NOTE)
