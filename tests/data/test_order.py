import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.order import ShuffledOrder
from dlrm_jax.errors import UserError

SIZES = st.integers(1, 60)
WINDOWS = st.integers(0, 70)


@given(SIZES, WINDOWS, st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_is_a_permutation_and_no_row_moves_as_far_as_the_window(n, window, seed, epoch):
    rows = ShuffledOrder(n, window, seed).rows(epoch, 0, n)
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))
    assert np.abs(rows - np.arange(n)).max() < (window or n)


@given(SIZES, WINDOWS, st.lists(st.tuples(*[st.integers(0, 60)] * 3), max_size=8))
def test_any_part_asked_for_is_that_of_the_whole(n, window, parts):
    order = ShuffledOrder(n, window, 7)
    for epoch, a, b in parts:
        start, stop = sorted((min(a, n), min(b, n)))
        whole = ShuffledOrder(n, window, 7).rows(epoch, 0, n)
        np.testing.assert_array_equal(order.rows(epoch, start, stop), whole[start:stop])


@pytest.mark.parametrize("window", [0, 50, 51])
def test_a_window_of_all_rows_is_one_permutation_of_seed_and_epoch(window):
    expected = np.random.default_rng([3, 2]).permutation(np.arange(50, dtype=np.int32))
    np.testing.assert_array_equal(ShuffledOrder(50, window, 3).rows(2, 0, 50), expected)


def test_a_window_of_one_leaves_the_order():
    np.testing.assert_array_equal(ShuffledOrder(50, 1, 3).rows(2, 0, 50), np.arange(50))


@pytest.mark.parametrize("window", [0, 40])
def test_epochs_and_seeds_differ(window):
    orders = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    drawn = {tuple(ShuffledOrder(200, window, s).rows(e, 0, 200).tolist()) for s, e in orders}
    assert len(drawn) == len(orders)


def test_windows_begin_elsewhere_in_each_epoch():
    order = ShuffledOrder(1000, 100, 0)
    # Rows before a border stay before it.
    borders = [
        {b for b in range(1, 1000) if order.rows(epoch, 0, b).max() < b} for epoch in range(4)
    ]
    assert all(len(found) >= 9 for found in borders)
    assert not set.intersection(*borders)


def test_memory_is_that_of_the_window():
    order = ShuffledOrder(10**12, 1000, 0)
    tracemalloc.start()
    try:
        rows = order.rows(5, 10**11, 10**11 + 5000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(set(rows.tolist())) == 5000
    assert abs(rows - 10**11).max() < 6000


def test_arguments_out_of_range():
    with pytest.raises(UserError, match="seed"):
        ShuffledOrder(7, 0, -1)
    with pytest.raises(UserError, match="window"):
        ShuffledOrder(7, -1, 0)
