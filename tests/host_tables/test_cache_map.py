"""Which rows a cache keeps: always those of a batch, and of the others the highest scores."""

import numpy as np
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.host_tables.cache_map import CacheMap

ROWS, CACHE = 500, 120


def batches(count, seed=0):
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield np.minimum(random.zipf(1.2, 60) - 1, ROWS - 1).astype(np.int32)


@pytest.mark.parametrize("half_life", [0.5, 7.0, 1e4])
def test_the_lowest_scores_make_room(half_life: float):
    # With a half-life of 0.5 the weights are scaled down on the way.
    own = CacheMap("t", ROWS, np.arange(CACHE, dtype=np.int32), half_life=half_life)
    cached = np.arange(CACHE)  # by place
    scores = np.zeros(ROWS)
    moved = 0
    for number, ids in enumerate(batches(100)):
        rows = np.unique(ids)
        scores *= 0.5 ** (1 / half_life)
        scores[rows] += 1
        found = own.exchange(number, ids)
        assert found.read == len(rows)
        np.testing.assert_array_equal(found.coming, np.setdiff1d(rows, cached))
        np.testing.assert_array_equal(cached[found.places], found.going)
        assert not np.isin(found.going, rows).any()
        kept = np.setdiff1d(cached, np.concatenate([found.going, rows]))
        if len(found.going) and len(kept):
            assert scores[found.going].max() <= scores[kept].min() * (1 + 1e-4)
        cached[found.places] = found.coming
        np.testing.assert_array_equal(cached[own.places(ids)], ids)
        moved += len(found.going)
    assert moved > CACHE


def test_rows_on_their_way_to_the_host_are_known():
    own = CacheMap("t", 10, np.arange(4, dtype=np.int32))
    first = own.exchange(0, np.arange(4, 8, dtype=np.int32))
    np.testing.assert_array_equal(np.sort(first.going), np.arange(4))
    assert (first.left_in == -1).all()
    second = own.exchange(1, np.array([2, 9], np.int32))
    np.testing.assert_array_equal(second.coming, [2, 9])
    np.testing.assert_array_equal(second.left_in, [0, -1])
    own.back(0, first.going)  # 2 has come back to the cache before it was on the host
    third = own.exchange(2, np.array([2, 0, 1], np.int32))
    np.testing.assert_array_equal(third.coming, [0, 1])
    np.testing.assert_array_equal(third.left_in, [-1, -1])


def test_rows_that_are_only_read_have_nowhere_to_go():
    own = CacheMap("t", 10, np.arange(2, dtype=np.int32), writes_back=False)
    own.exchange(0, np.array([5, 6], np.int32))
    assert own.exchange(1, np.array([0, 1], np.int32)).left_in.tolist() == [-1, -1]


def test_a_batch_that_does_not_fit_is_refused():
    own = CacheMap("t", 10, np.arange(4, dtype=np.int32))
    with pytest.raises(UserError, match="table t: a batch reads 5 different rows, and its cache"):
        own.exchange(0, np.arange(5, dtype=np.int32))
    for wrong in (10, -2):
        with pytest.raises(UserError, match=f"table t: expected ids from 0 to 9, got {wrong}"):
            own.exchange(0, np.array([wrong, 3], np.int32))
    assert len(own.exchange(0, np.arange(4, dtype=np.int32)).coming) == 0
