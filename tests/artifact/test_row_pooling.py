"""Lookups of stored rows in NumPy; tests/native compares the native ones with them."""

from __future__ import annotations

import numpy as np
import pytest
from stored_lookups import ROWS, draw_ids, expected, make_lookups

from dlrm_jax.artifact.row_pooling import RowPooling, StoredLookup
from dlrm_jax.errors import UserError


@pytest.fixture(scope="module")
def pool():
    return RowPooling(make_lookups())


@pytest.mark.parametrize("weighted", [False, True])
def test_vectors_are_those_of_the_formula(pool, weighted):
    ids = draw_ids(pool.lookups, 20)
    weights = np.random.default_rng(1).normal(size=ids.shape).astype(np.float32)
    found = pool.split(pool(ids, weights if weighted else None))
    for lookup in pool.lookups:
        wanted = expected(lookup, ids, weights if weighted else None)
        assert found[lookup.name].shape == wanted.shape
        np.testing.assert_allclose(found[lookup.name], wanted, rtol=2e-5, atol=2e-5)


def test_empty_bags_are_zero_and_batches_may_be_empty(pool):
    ids = np.full((3, pool.id_columns), -1, np.int64)
    assert not pool(ids).any()
    assert pool(ids[:0]).shape == (0, pool.width)


def test_weights_that_sum_to_zero_have_the_mean_zero(pool):
    (lookup,) = (x for x in pool.lookups if x.table.dim == 7)
    ids = np.array([[-1, 3, 4, -1]], np.int32)
    weights = np.array([[0, 0.5, -0.5, 0]], np.float32)
    assert not RowPooling([lookup])(ids, weights).any()


def test_the_result_goes_where_it_is_told(pool):
    ids = draw_ids(pool.lookups, 5)
    out = np.empty((5, pool.width), np.float32)
    assert pool(ids, out=out) is out
    assert np.array_equal(out, pool(np.asfortranarray(ids)))


def test_ids_beyond_the_table_are_named(pool):
    ids = draw_ids(pool.lookups, 4)
    ids[2, 6] = ROWS
    with pytest.raises(
        UserError, match=f"row 2, column 6 of lookup lookup 3: got {ROWS}, but table table 3 has 37"
    ):
        pool(ids)


def test_wrong_arguments_are_errors(pool):
    ids = draw_ids(pool.lookups, 4)
    for arguments, message in (
        ((ids[:, 1:], None, None), "ids: expected int32 or int64 of shape"),
        ((ids.astype(np.float32), None, None), "got float32 of shape"),
        ((ids, np.ones((4, 1), np.float32), None), "weights: expected float32"),
        ((ids, None, np.empty((4, 3), np.float32)), "out: expected contiguous float32"),
    ):
        with pytest.raises(UserError, match=message):
            pool._check(*arguments)  # behind the tests' checks of annotations
    table = pool.lookups[0].table
    with pytest.raises(UserError, match="expected columns a < b"):
        StoredLookup("a", table, (2, 2))
    with pytest.raises(UserError, match="expected a map by 1 or more, got 0"):
        StoredLookup("a", table, (0, 1), floor_divide=0)
    with pytest.raises(UserError, match="at least one"):
        RowPooling([])
    twice = [StoredLookup("a", table, (0, 1)), StoredLookup("a", table, (1, 2))]
    with pytest.raises(UserError, match="'a' is there twice"):
        RowPooling(twice)
