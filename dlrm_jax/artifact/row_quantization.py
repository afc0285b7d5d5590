"""Rows of numbers as rows of 8- or 4-bit integers, each with a scale and a bias of its own.

A stored row is its scale and its bias, both float16, and then the integers q: a byte each, or two
in a byte with the first one in the lower half. A number is scale · q + bias. Layout and rounding
are those of FBGEMM's inference tables, byte for byte:

- ``IntNBitTableBatchedEmbeddingBagsCodegen`` (fbgemm_gpu,
  split_table_batched_embeddings_ops_inference.py) for the layout;
- ``FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf`` (FBGEMM, src/QuantUtils.cc) for the rounding. It
  writes scale and bias behind the integers; inference tables have them in front;
- ``choose_qparams_optimized`` (PyTorch, aten/src/ATen/native/quantized/QTensor.cpp), which
  ``embedding_bag_4bit_prepack(optimized_qparams=True)`` calls with its defaults, for the range of
  4-bit rows: Guan et al., Post-training 4-bit quantization on embedding tables, 2019, section 3.

What float16 can't hold:

- A bias or a scale beyond 65504 is an error.
- A scale that rounds to 0 becomes 1, so that each number becomes the bias. The row's range is then
  below 8e-6 with 8 bits, 5e-7 with 4 bits.
- A scale below 6.1e-5 is a subnormal number of float16 with fewer digits. It is off by up to 3e-8,
  so a number by up to 255 (15) times that, besides half a step.
- The bias is rounded before the range is measured. If it is rounded up beyond the largest number,
  the scale is negative, and numbers are off by no more than the bias.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, UInt8

HEADER_BYTES = 4
"""Bytes of a row's scale and bias."""

# The search moves by a 200th of the range, as long as 168 of them, 84 %, are left.
_BINS, _LEAST_BINS = np.float32(200), np.float32(168)

Column = Float32[np.ndarray, " n"]


def quantize(rows: Float32[np.ndarray, "n d"], bits: int) -> UInt8[np.ndarray, "n b"]:
    """Stored rows, see the module; 4-bit rows have the range that `clipped_range` finds.

    ``native.quantized_rows.quantize`` gives the same bytes.

    Args:
        rows: finite numbers; a row that `unstorable` names gives no error but nonsense.
        bits: 8 or 4.
    """
    columns = np.ascontiguousarray(rows.T)
    low, high = columns.min(axis=0) + np.float32(0), columns.max(axis=0)  # -0 becomes 0
    if bits == 4:
        low, high = clipped_range(columns, low, high)
    bias, scale = _bias_and_scale(low, high, bits)
    inverse = np.float32(1) / np.where(scale == 0, np.float32(1), scale)
    scale = np.where(scale == 0, np.float32(1), scale)
    integers = np.clip(np.rint((rows - bias[:, None]) * inverse[:, None]), 0, 2**bits - 1)
    header = np.stack([scale, bias], axis=1).astype("<f2").view(np.uint8)
    return np.concatenate([header, _packed(integers.astype(np.uint8), bits)], axis=1)


def dequantize(stored: UInt8[np.ndarray, "n b"], bits: int, dim: int) -> Float32[np.ndarray, "n d"]:
    """The numbers of stored rows; scale · q is exact in float32, so there is one rounding.

    Args:
        stored: rows as `quantize` gives them.
        bits: 8 or 4.
        dim: numbers of a row, d.
    """
    header = np.ascontiguousarray(stored[:, :HEADER_BYTES]).view("<f2").astype(np.float32)
    scale, bias = header[:, :1], header[:, 1:]
    integers = stored[:, HEADER_BYTES:]
    if bits == 4:
        integers = np.stack([integers & 15, integers >> 4], axis=2).reshape(len(stored), -1)
    return scale * integers[:, :dim].astype(np.float32) + bias


def unstorable(rows: Float32[np.ndarray, "n d"], bits: int) -> Bool[np.ndarray, " n"]:
    """Which rows have a bias or a scale that is infinite in float16.

    Args:
        rows: finite numbers.
        bits: 8 or 4.
    """
    bias, scale = _bias_and_scale(rows.min(axis=1), rows.max(axis=1), bits)
    return ~(np.isfinite(bias) & np.isfinite(scale))


def clipped_range(
    columns: Float32[np.ndarray, "d n"], low: Column, high: Column
) -> tuple[Column, Column]:
    """The lower and upper end of each row's range whose 4-bit integers are nearest to the row.

    The search is greedy: from the whole range, it moves the end inwards whose move leaves the
    smaller error, by a 200th of the range at a time, down to 84 % of it. Of the ranges on its way
    that have a smaller error than both of their moves, it takes the best, if it is better than the
    whole range. Where a move is too small for float32 to change the end, it stops; PyTorch never
    ends.

    Args:
        columns: rows to be stored, transposed.
        low: smallest number of each row.
        high: largest number of each row.
    """
    step = (high - low) / _BINS
    least = _LEAST_BINS * step
    loss = _loss(columns, low, high)
    best, best_low, best_high = loss, low, high
    searching = low + least < high
    while searching.any():
        raised, lowered = low + step, high - step
        loss_raised = _loss(columns, raised, high)
        loss_lowered = _loss(columns, low, lowered)
        better = searching & (loss < loss_raised) & (loss < loss_lowered) & (loss < best)
        best = np.where(better, loss, best)
        best_low, best_high = np.where(better, low, best_low), np.where(better, high, best_high)
        raise_low = loss_raised < loss_lowered
        searching &= np.where(raise_low, raised != low, lowered != high)
        low = np.where(searching & raise_low, raised, low)
        high = np.where(searching & ~raise_low, lowered, high)
        loss = np.where(raise_low, loss_raised, loss_lowered)
        searching &= low + least < high
    return best_low, best_high


def _loss(columns: Float32[np.ndarray, "d n"], low: Column, high: Column) -> Column:
    """The Euclidean distance of rows from what 4 bits make of them, summed from left to right."""
    bias, scale = _bias_and_scale(low, high, 4)
    inverse = np.float32(1) / np.where(scale == 0, np.float32(1), scale)
    total = np.zeros_like(low)
    # A range whose lower end float16 can't hold has no number as loss, and isn't taken.
    with np.errstate(invalid="ignore"):
        for column in columns:
            integers = np.clip(np.rint((column - bias) * inverse), 0, 15)
            error = column - (integers * scale + bias)
            total += error * error
    return np.sqrt(total)


def _bias_and_scale(low: Column, high: Column, bits: int) -> tuple[Column, Column]:
    """Bias and scale, rounded to float16."""
    bias = _rounded(low)
    span = high - bias
    scale = np.where(span == 0, np.float32(1), span / np.float32(2**bits - 1))
    return bias, _rounded(scale)


def _rounded(numbers: Column) -> Column:
    with np.errstate(over="ignore"):  # of rows that are refused
        return numbers.astype(np.float16).astype(np.float32)


def _packed(integers: UInt8[np.ndarray, "n d"], bits: int) -> UInt8[np.ndarray, "n b"]:
    if bits == 8:
        return integers
    padded = np.pad(integers, ((0, 0), (0, integers.shape[1] % 2)))
    return padded[:, ::2] | padded[:, 1::2] << 4
