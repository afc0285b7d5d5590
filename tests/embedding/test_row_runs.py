"""Sums over runs of equal rows, compared with loops in NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.embedding.row_runs import runs_of, sum_runs
from dlrm_jax.embedding.row_sums import sum_all


@functools.partial(jax.jit, static_argnums=0)
def summed(size, blocks):
    runs = runs_of(blocks)
    return runs, sum_runs(size, runs, False), sum_runs(size, runs, True)


jitted_sums = jax.jit(sum_all, static_argnums=(0, 2))


def drawn(rng, size, shapes, width, dtype, weighted, hot=None):
    """Blocks, the rows of which are drawn among few, so that they repeat; an eighth is no row."""
    pool = rng.integers(0, size, 12)
    blocks = []
    for shape in shapes:
        rows = rng.choice(pool if hot is None else [hot], shape)
        rows = np.where(rng.random(shape) < 0.125, size + rng.integers(0, 3, shape), rows)
        weights = rng.normal(size=shape).astype(dtype) if weighted else None
        cotangents = rng.normal(size=(*shape[:2], width)).astype(dtype)
        blocks.append((rows.astype(np.int32), weights, cotangents))
    return blocks


def check(size, blocks, tolerance):
    expected = {}
    for rows, weights, cotangents in blocks:
        for n, t, i in np.ndindex(rows.shape):
            if rows[n, t, i] < size:
                one = cotangents[n, t].astype(np.float64)
                one = one if weights is None else one * weights[n, t, i]
                expected[rows[n, t, i]] = expected.get(rows[n, t, i], 0) + one
    runs, (rows, sums), compact = jax.tree.map(np.asarray, summed(size, blocks))
    assert np.all(np.diff(runs.rows) >= 0)
    same = np.diff(runs.rows) == 0
    assert np.all((np.diff(runs.bags) >= 0)[same]), "not in the order of the batch"
    assert len(np.unique(rows)) == len(rows) == sum(x.size for x, _, _ in blocks)
    assert set(rows[rows < size]) == expected.keys()
    assert not sums[rows >= size].any()
    for row, one in zip(rows, sums, strict=True):
        if row < size:
            np.testing.assert_allclose(one, expected[row], rtol=tolerance, atol=tolerance)
    again = jax.tree.map(np.asarray, summed(size, blocks))[1]
    np.testing.assert_array_equal(again[1], sums)
    assert np.all(np.diff(compact[0].astype(np.int64)) > 0), "not ascending"
    kept = rows < size
    np.testing.assert_array_equal(compact[0][: kept.sum()], rows[kept])
    np.testing.assert_array_equal(compact[1][: kept.sum()], sums[kept])
    assert (compact[0][kept.sum() :] >= size).all()
    assert not compact[1][kept.sum() :].any()


# Whole blocks of 32 and parts of them, one level of blocks, two and three.
SHAPES = [
    [(1, 1, 1)],
    [(5, 3, 1), (5, 1, 7)],
    [(32, 1, 1)],
    [(11, 1, 3)],
    [(64, 2, 9)],
    [(67, 1, 17), (67, 2, 1)],
]


@given(st.integers(0, 2**31), st.sampled_from(SHAPES), st.booleans(), st.booleans())
def test_sums_are_those_of_a_loop(seed, shapes, weighted, is_float64):
    with jax.enable_x64(is_float64):
        dtype, tolerance = ("float64", 1e-12) if is_float64 else ("float32", 1e-4)
        blocks = drawn(np.random.default_rng(seed), 1000, shapes, 3, dtype, weighted)
        check(1000, blocks, tolerance)


@pytest.mark.parametrize("size", [1, 2**31 - 2000])
def test_one_hot_row_in_all_blocks(size):
    with jax.enable_x64(True):
        shapes = [(1201, 1, 1)]
        blocks = drawn(np.random.default_rng(1), size, shapes, 2, "float64", True, hot=size - 1)
        check(size, blocks, 1e-12)


def test_no_rows_at_all():
    rows = np.full((40, 1, 2), 7, np.int32)
    check(7, [(rows, None, np.ones((40, 1, 3), np.float32))], 0)


def test_an_infinite_gradient_stays_in_its_row():
    rows = np.arange(100, dtype=np.int32).reshape(100, 1, 1) // 3
    gradients = np.ones((100, 1, 2), np.float32)
    gradients[50] = np.inf
    totals, _ = jitted_sums(34, [(rows, None, gradients)], "sorted")
    assert np.isinf(totals[50 // 3]).all()
    assert np.isfinite(np.delete(np.asarray(totals), 50 // 3, axis=0)).all()


def test_sums_of_all_rows_are_those_of_additions():
    blocks = drawn(np.random.default_rng(2), 100, [(70, 2, 3)], 4, "float32", True)
    by_sort, by_scatter = (jitted_sums(100, blocks, way) for way in ("sorted", "scatter"))
    np.testing.assert_allclose(by_sort[0], by_scatter[0], atol=1e-5)
    np.testing.assert_array_equal(by_sort[1], by_scatter[1])


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_an_order_that_is_known_needs_no_sort(weighted):
    """Rows needn't ascend in it, but equal ones lie side by side."""
    rng = np.random.default_rng(3)
    blocks = drawn(rng, 100, [(70, 2, 3), (70, 1, 2)], 4, "float32", weighted)
    rows = np.concatenate([rows.reshape(-1) for rows, _, _ in blocks])
    order = np.argsort(rng.permutation(200)[rows], kind="stable")
    blocks = jax.tree.map(jnp.asarray, blocks)
    expected = jitted_sums(100, blocks, "sorted")
    known = jitted_sums(100, blocks, "sorted", jnp.asarray(order))
    np.testing.assert_allclose(known[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(known[1], expected[1])
    of_order = functools.partial(sum_all, 100, row_sums="sorted", order=jnp.asarray(order))
    assert "stablehlo.sort" not in jax.jit(of_order).lower(blocks).as_text()
    ascending = np.argsort(rows, kind="stable")
    compact = jitted_sums(100, blocks, "compacted", jnp.asarray(ascending))
    jax.tree.map(np.testing.assert_array_equal, compact, expected)
