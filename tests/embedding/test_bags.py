import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.embedding import pad_bags
from dlrm_jax.errors import UserError

BAGS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=6)


def flat(bags, dtype=np.int64):
    """The arguments of pad_bags."""
    return np.array([x for bag in bags for x in bag], dtype), np.array([len(b) for b in bags], int)


@given(BAGS, st.integers(1, 8), st.sampled_from([np.int64, np.int32]))
def test_each_bag_is_its_first_ids_then_absent_ones(bags, max_ids, dtype):
    ids, weights = pad_bags(*flat(bags, dtype), max_ids)
    assert weights is None
    assert ids.dtype == np.int32
    assert ids.shape == (len(bags), max_ids)
    for row, bag in zip(ids.tolist(), bags, strict=True):
        kept = bag[:max_ids]
        assert row == kept + [-1] * (max_ids - len(kept))


@given(BAGS, st.integers(1, 8))
def test_weights_stay_with_their_ids(bags, max_ids):
    values, lengths = flat(bags)
    given_weights = np.arange(1, len(values) + 1, dtype=np.float32)
    ids, weights = pad_bags(values, lengths, max_ids, given_weights)
    np.testing.assert_array_equal(ids, pad_bags(values, lengths, max_ids)[0])
    assert weights is not None
    assert weights.dtype == np.float32
    ends = np.cumsum(lengths)
    for row, length, end in zip(weights.tolist(), lengths, ends, strict=True):
        kept = given_weights[end - length : end][:max_ids].tolist()
        assert row == kept + [0.0] * (max_ids - len(kept))


def test_a_long_bag_keeps_its_first_ids():
    ids, weights = pad_bags(
        np.array([7, 5, 9, 1]), np.array([3, 1]), 2, np.array([0.1, 0.2, 0.3, 0.4], "f4")
    )
    np.testing.assert_array_equal(ids, [[7, 5], [1, -1]])
    np.testing.assert_array_equal(weights, np.array([[0.1, 0.2], [0.4, 0]], "f4"))


@pytest.mark.parametrize(
    ("values", "lengths", "message"),
    [
        ([1, 2], [3, -1], "lengths must not be negative, got -1"),
        ([1, 2], [1, 2], "lengths sum to 3 but there are 2 ids"),
        ([1, 2], [], "lengths sum to 0 but there are 2 ids"),
        ([4, -1], [2], r"ids must lie in 0\.\.2\^31-1, got -1\.\.4"),
        ([4, 2**31], [2], r"ids must lie in 0\.\.2\^31-1, got 4\.\.2147483648"),
    ],
)
def test_errors_say_what_came(values, lengths, message):
    with pytest.raises(UserError, match=message):
        pad_bags(np.array(values, np.int64), np.array(lengths, np.int64), 2)


def test_weights_must_match_the_ids():
    # Without the import hook, which users don't have and which would stop it first.
    plain = inspect.unwrap(pad_bags)
    with pytest.raises(UserError, match=r"2 ids need as many weights, got shape \(3,\)"):
        plain(np.array([1, 2]), np.array([2]), 2, np.ones(3, "f4"))
    with pytest.raises(UserError, match="expected integers, got float64"):
        plain(np.array([1.7, 2.0]), np.array([2]), 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int32])
def test_lengths_may_be_any_integers(dtype):
    ids, _ = pad_bags(np.array([5, 6, 7]), np.array([1, 2], dtype), 2)
    assert ids.tolist() == [[5, -1], [6, 7]]


def test_what_has_another_type_is_named():
    plain, ids, ones = inspect.unwrap(pad_bags), np.array([5, 6, 7]), np.ones(3)
    for lengths in (np.array([1.0, 2.0]), np.array([True, True])):
        with pytest.raises(UserError, match=f"lengths: expected integers, got {lengths.dtype}"):
            plain(ids, lengths, 2)
    with pytest.raises(UserError, match="length 18446744073709551615 but there are 3 id"):
        plain(ids, np.array([2**64 - 1, 4], np.uint64), 2)
    for dtype in (complex, int):
        message = f"id_weights: expected floating numbers, got {np.dtype(dtype)}; cast to float32"
        with pytest.raises(UserError, match=message):
            plain(ids, np.array([1, 2]), 2, ones.astype(dtype))
    assert plain([5, 6, 7], [1, 2], 2, [0.5, 1.0, 1.5])[1].tolist() == [[0.5, 0], [1, 1.5]]
    assert plain([], [0, 0], 1, [])[0].tolist() == [[-1], [-1]]
