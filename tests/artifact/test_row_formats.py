"""Rows to bytes and back, against the formulas in float64 and bytes of FBGEMM and PyTorch."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_jax.artifact import row_formats
from dlrm_jax.artifact.row_formats import decode, encode, row_bytes
from dlrm_jax.artifact.row_quantization import quantize, unstorable
from dlrm_jax.errors import UserError

BITS = {"int8": 8, "int4": 4}

# Stored by fbgemm-gpu-cpu 1.8.0 (FloatToFusedNBitRowwiseQuantizedSBHalf) and torch 2.13.0
# (embedding_bag_4bit_prepack with optimized_qparams), with scale and bias moved to the front.
ROWS = [
    [0.5, -1.25, 3.0, 0.125, 2.0, -0.75],
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    [1e-3, -2e-3, 5e-4, 0.0, 3e-3, -1e-3],
    [100.25, -7.5, 33.125, 0.3, -64.2, 12.0],
    [1000.0, 1003.0, 1001.2, 1002.7, 1000.4, 1001.9],
    [0.01, 0.02, -0.015, 0.9, 0.0, -0.01],
]
STORED = {
    "int8": [
        "442400bd6900ff53c31e",
        "003c003c000000000000",
        "4901199899008066ff33",
        "293903d4ff5897640076",
        "0622d06300ff66e622a2",
        "591baea3070a00ff0401",
    ],
    "int4": [
        "773400bd065f2c",
        "003c003c000000",
        "680d199809683f",
        "744903d45f6970",
        "4632d063f0e6a2",
        "b12b399500f000",
    ],
}

tables = st.builds(
    lambda seed, rows, dim, size, offset: (
        offset + size * np.random.default_rng(seed).standard_t(3, (rows, dim))
    ).astype(np.float32),
    st.integers(0, 2**32),
    st.integers(1, 5),
    st.integers(1, 20),
    st.sampled_from([0.0, 1e-8, 1e-4, 0.1, 3.0, 100.0]),
    st.sampled_from([0.0, 0.01, -1.0, 1000.3]),
)


@pytest.mark.parametrize("row_format", STORED)
def test_bytes_are_those_of_fbgemm_and_pytorch(row_format):
    stored = encode(np.array(ROWS, np.float32), row_format)
    assert [row.tobytes().hex() for row in stored] == STORED[row_format]


@given(tables, st.sampled_from(["int8", "int4"]))
@settings(max_examples=60)
def test_integers_are_within_half_a_step(rows, row_format):
    most = 2 ** BITS[row_format] - 1
    stored = encode(rows, row_format)
    assert stored.shape == (len(rows), row_bytes(row_format, rows.shape[1]))
    header = stored[:, :4].copy().view(np.float16).astype(np.float64)
    scale, bias = header[:, :1], header[:, 1:]
    exact, found = rows.astype(np.float64), decode(stored, row_format, rows.shape[1])
    low, high = exact.min(axis=1, keepdims=True), exact.max(axis=1, keepdims=True)
    step = np.abs(np.where(scale == 1, (high - low) / most, scale))
    # float16 has 11 digits, and below 2^-14 a fixed distance of 2^-24.
    rounding = np.abs(bias) * 2.0**-11 + most * np.maximum(step * 2.0**-11, 2.0**-25) + 2.0**-25
    clipped = 0.16 * (high - low) if row_format == "int4" else 0
    assert (np.abs(found - exact) <= 0.5 * step + 1.01 * rounding + clipped + 1e-30).all()
    # The numbers as the formula gives them, in float64; one apart where half a step is near.
    at = np.clip(np.rint((exact - bias) / scale), 0, most) * scale + bias
    assert (np.abs(at - found) <= np.abs(scale) * 1.001 + np.abs(bias) * 1e-6).all()


@given(tables)
@settings(max_examples=30)
def test_clipping_is_no_worse_than_the_whole_range(rows):
    bias = rows.min(axis=1, keepdims=True).astype(np.float16).astype(np.float64)
    span = rows.max(axis=1, keepdims=True) - bias
    scale = (span / 15).astype(np.float16).astype(np.float64)
    scale[scale == 0] = 1
    whole = np.clip(np.rint((rows - bias) / scale), 0, 15) * scale + bias
    clipped = decode(encode(rows, "int4"), "int4", rows.shape[1])
    distances = [np.linalg.norm(x - rows, axis=1) for x in (clipped, whole)]
    assert (distances[0] <= distances[1] * 1.001 + np.abs(rows).max() * 1e-6).all()


@given(st.integers(0, 2**32), st.sampled_from(["int8", "int4"]))
@settings(max_examples=30)
def test_decoded_rows_stay_as_they_are(seed, row_format):
    rng = np.random.default_rng(seed)
    dim, most = int(rng.integers(2, 20)), 2 ** BITS[row_format] - 1
    integers = rng.integers(0, most + 1, (50, dim))
    integers[:, 0], integers[:, 1] = 0, most
    scale, bias = (rng.uniform(a, b, (50, 1)).astype(np.float16) for a, b in ((0.01, 1), (-9, 9)))
    rows = (scale.astype(np.float32) * integers + bias).astype(np.float32)
    stored = encode(rows, row_format)
    assert np.array_equal(decode(stored, row_format, dim), rows)
    assert np.array_equal(encode(rows, row_format), stored)


@given(tables)
@settings(max_examples=30)
def test_floats_are_kept_or_rounded_to_even(rows):
    dim = rows.shape[1]
    assert np.array_equal(decode(encode(rows, "float32"), "float32", dim), rows)
    stored = encode(rows, "bfloat16")
    bits = rows.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    assert np.array_equal(stored.view(np.uint16), rounded)
    assert np.array_equal(stored.view(ml_dtypes.bfloat16), rows.astype(ml_dtypes.bfloat16))
    assert np.array_equal(decode(stored, "bfloat16", dim).view(np.uint32), rounded << 16)


def test_constant_rows_are_as_exact_as_float16():
    values = np.array([0.0, -0.0, 1.5, -3e4, 1e-7, 0.1], np.float32)
    rows = np.repeat(values[:, None], 3, axis=1)
    for row_format in BITS:
        found = decode(encode(rows, row_format), row_format, 3)
        assert (np.abs(found - rows) <= np.abs(rows.astype(np.float16) - rows)).all()


def test_ranges_too_small_for_the_search_end_it():
    rows = 1000 + np.arange(6, dtype=np.float32) * np.float32(2**-14)
    assert np.abs(decode(encode(rows[None], "int4"), "int4", 6) - rows).max() < 0.5


def test_chunks_give_the_same_and_write_where_they_are_told(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(100, 7))
    for row_format in ("float32", "bfloat16", "int8", "int4"):
        whole = encode(rows, row_format)
        monkeypatch.setattr(row_formats, "_CHUNK_NUMBERS", 21)
        out = np.empty_like(whole)
        assert encode(rows, row_format, out=out) is out
        assert np.array_equal(out, whole)
        assert np.array_equal(decode(out, row_format, 7), decode(whole, row_format, 7))
        monkeypatch.undo()


def test_an_empty_table_has_no_rows():
    for row_format in BITS:
        assert encode(np.zeros((0, 3), np.float32), row_format).shape == (
            0,
            7 if row_format == "int8" else 6,
        )


def test_largest_numbers_are_stored():
    rows = np.array([[-65504.0, 0.0], [65504.0, 65504.0]], np.float32)
    assert not unstorable(rows, 8).any()
    assert np.array_equal(quantize(rows, 8)[:, 4:], [[0, 255], [0, 0]])


@pytest.mark.parametrize(
    ("row_format", "row", "message"),
    [
        ("float32", [0.0, np.nan], "row 12: expected finite numbers, got nan in column 1"),
        ("int8", [-np.inf, 0.0], "row 12: expected finite numbers, got -inf in column 0"),
        ("int8", [-1e5, 0.0], "row 12: its numbers go from -100000 to 0, which int8 can't hold"),
        ("int8", [0.0, 2e7], "row 12: .* which int8 can't hold; choose another row format"),
        ("int4", [0.0, 1e6], "row 12: .* which int4 can't hold"),
        ("bfloat16", [0.0, 3.4e38], "row 12: .* which bfloat16 can't hold"),
    ],
)
def test_what_a_format_cannot_hold_is_an_error(row_format, row, message):
    with pytest.raises(UserError, match=message):
        encode(np.array([[0.0, 1.0], [1.0, 2.0], row], np.float32), row_format, first_row=10)


def test_wrong_arguments_are_errors():
    rows = np.zeros((2, 3), np.float32)
    with pytest.raises(UserError, match="expected float32, bfloat16, int8, int4, got 'int2'"):
        row_bytes("int2", 3)
    with pytest.raises(UserError, match="expected 7 bytes for 3 numbers as int8, got 6"):
        decode(encode(rows, "int4"), "int8", 3)
    with pytest.raises(UserError, match=r"out: expected shape \(2, 7\), got \(2, 6\)"):
        encode(rows, "int8", out=np.empty((2, 6), np.uint8))
    with pytest.raises(UserError, match="at least one column"):
        encode(rows[:, :0], "int8")
