"""Checksums: the same number on devices and on the host, of a whole array and of its parts."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.embedding.checksum import checksum, checksum_on_host, place

on_device = jax.jit(checksum)
SMALL = (jnp.bfloat16, "f2", "u2", "i1", bool, jnp.int4, jnp.uint4, jnp.float4_e2m1fn)
LARGE = ("f8", "i8", "c8", "c16")


def numbers(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=shape)
    return np.asarray(np.abs(3 * x) if "uint" in str(np.dtype(dtype)) else 3 * x).astype(dtype)


@pytest.mark.parametrize("shape", [(), (0,), (5, 0), (1,), (70_001,), (9_001, 8), (5, 3, 2)])
@pytest.mark.parametrize("dtype", ["f4", "u2", "i4"])
def test_the_host_gives_the_same_number(shape: tuple[int, ...], dtype: str):
    x = numbers(shape, dtype)
    np.testing.assert_array_equal(on_device(x), checksum_on_host(x))
    if not x.size:
        assert not checksum_on_host(x).any()


@pytest.mark.parametrize("dtype", [*SMALL, *LARGE], ids=lambda x: np.dtype(x).name)
def test_the_host_gives_the_same_number_of_any_dtype(dtype: Any):
    with jax.enable_x64(dtype in LARGE):
        for shape in ((), (301, 4)):
            x = numbers(shape, dtype)
            np.testing.assert_array_equal(on_device(x), checksum_on_host(x))


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8"])
def test_it_is_the_sum_over_parts_in_any_order(dtype: str):
    x = numbers((700, 8), dtype)
    total = np.zeros(2, np.uint32)
    for row, column in itertools.product((300, 0), (4, 0)):
        part = x[row : 300 if row == 0 else None][:, column : column + 4]
        total += checksum_on_host(part, place(np.uint32(row), np.uint32(column)))
    np.testing.assert_array_equal(total, checksum_on_host(x))


@pytest.mark.parametrize("bit", range(32))
def test_changes_of_a_bit_are_seen(bit: int):
    """One by each sum; of two, either sum misses less than the chance of 32 bits suggests."""
    chance = np.random.default_rng(bit)
    x = chance.normal(size=(100, 8)).astype(np.float32)
    whole = checksum_on_host(x)
    for count in [1] * 20 + [2] * 50:
        other = x.copy()
        other.view(np.uint32).reshape(-1)[chance.choice(x.size, count, False)] ^= np.uint32(
            1 << bit
        )
        assert (checksum_on_host(other) != whole).all()


def test_zeros_moves_and_lengths_are_seen():
    x = numbers((512, 16), "f4")
    others = [np.roll(x, 1, 0), np.roll(x, 1, 1), x[::-1], x.reshape(16, 512), x.reshape(-1), -x]
    others += [x * (np.arange(512) < 256)[:, None].astype("f4"), np.zeros_like(x), x[:-1]]
    sums = {tuple(checksum_on_host(y).tolist()) for y in [x, *others]}
    assert len(sums) == 1 + len(others)
