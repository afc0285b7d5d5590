"""Tables as they are stored for serving: float rows to bytes and back."""

from __future__ import annotations

from typing import Literal, cast, get_args

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32, UInt8

from dlrm_jax.artifact import row_quantization
from dlrm_jax.artifact.row_quantization import HEADER_BYTES
from dlrm_jax.errors import UserError
from dlrm_jax.native import quantized_rows

RowFormat = Literal["float32", "bfloat16", "int8", "int4"]
"""The numbers of a row as they are, rounded to bfloat16, or as integers with scale and bias."""

_FLOATS = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_BITS = {"int8": 8, "int4": 4}
_CHUNK_NUMBERS = 2**20


def as_row_format(row_format: str) -> RowFormat:
    """The row format of this name.

    Raises:
        UserError: it is none.
    """
    if row_format not in get_args(RowFormat):
        raise UserError(
            f"row format: expected {', '.join(get_args(RowFormat))}, got {row_format!r}"
        )
    return cast(RowFormat, row_format)


def row_bytes(row_format: str, dim: int) -> int:
    """Bytes of a stored row.

    Args:
        row_format: a `RowFormat`.
        dim: numbers of a row.
    """
    as_row_format(row_format)
    if dtype := _FLOATS.get(row_format):
        return dim * dtype.itemsize
    return HEADER_BYTES + (dim * _BITS[row_format] + 7) // 8


def encode(
    rows: Float[np.ndarray, "n d"],
    row_format: str,
    *,
    first_row: int = 0,
    out: UInt8[np.ndarray, "n b"] | None = None,
) -> UInt8[np.ndarray, "n b"]:
    """Stored rows, [n, `row_bytes`]; works chunk by chunk, so that both may be memory maps.

    float32 keeps the bits, bfloat16 rounds to the nearest, to even of two. `row_quantization` says
    what int8 and int4 do, and what float16, in which they keep scale and bias, can't hold. The
    native kernels are used if they are built, with the same result.

    Args:
        rows: rows of a table; other dtypes than float32 are converted to it.
        row_format: a `RowFormat`.
        first_row: number of the first row, for messages.
        out: array for the result; None for a new one.

    Raises:
        UserError: a number isn't finite, or the format can't hold a row.
    """
    count, dim = rows.shape
    width = row_bytes(row_format, dim)
    if dim < 1:
        raise UserError(f"rows: expected at least one column, got shape {rows.shape}")
    if out is None:
        out = np.empty((count, width), np.uint8)
    elif out.shape != (count, width):
        raise UserError(f"out: expected shape {(count, width)}, got {out.shape}")
    for chunk in _chunks(count, dim):
        numbers = np.ascontiguousarray(rows[chunk], np.float32)
        out[chunk] = _encoded(numbers, row_format, first_row + chunk.start)
    return out


def decode(
    stored: UInt8[np.ndarray, "n b"], row_format: str, dim: int
) -> Float32[np.ndarray, "n d"]:
    """The numbers of stored rows, chunk by chunk.

    Args:
        stored: rows as `encode` gives them; it may be a memory map.
        row_format: a `RowFormat`.
        dim: numbers of a row.

    Raises:
        UserError: rows of this format and width have another number of bytes.
    """
    if stored.shape[1] != (width := row_bytes(row_format, dim)):
        raise UserError(
            f"stored rows: expected {width} bytes for {dim} numbers as {row_format}, got "
            f"{stored.shape[1]}"
        )
    numbers = np.empty((len(stored), dim), np.float32)
    for chunk in _chunks(len(stored), dim):
        part = np.ascontiguousarray(stored[chunk])
        if dtype := _FLOATS.get(row_format):
            numbers[chunk] = part.view(dtype)
        else:
            numbers[chunk] = row_quantization.dequantize(part, _BITS[row_format], dim)
    return numbers


def _chunks(count: int, dim: int) -> list[slice]:
    size = max(1, _CHUNK_NUMBERS // dim)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _encoded(
    numbers: Float32[np.ndarray, "n d"], row_format: str, first_row: int
) -> UInt8[np.ndarray, "n b"]:
    """A chunk of `encode`."""
    finite = np.isfinite(numbers)
    if not finite.all():
        row, column = (int(x[0]) for x in np.nonzero(~finite))
        raise UserError(
            f"row {first_row + row}: expected finite numbers, got {numbers[row, column]} in column "
            f"{column}"
        )
    if dtype := _FLOATS.get(row_format):
        with np.errstate(over="ignore"):  # is reported below
            rounded = numbers.astype(dtype)
        fits = np.isfinite(rounded.astype(np.float32))
        _refuse(np.invert(np.all(fits, axis=1)), numbers, row_format, first_row)
        return rounded.view(np.uint8)
    bits = _BITS[row_format]
    _refuse(row_quantization.unstorable(numbers, bits), numbers, row_format, first_row)
    if quantized_rows.available():
        return quantized_rows.quantize(numbers, bits)
    return row_quantization.quantize(numbers, bits)


def _refuse(
    bad: np.ndarray, numbers: Float32[np.ndarray, "n d"], row_format: str, first_row: int
) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            f"row {first_row + row}: its numbers go from {numbers[row].min():g} to "
            f"{numbers[row].max():g}, which {row_format} can't hold; choose another row format"
        )
