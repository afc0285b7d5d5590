import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.vocabulary import FIRST_VALUE, MISSING, UNSEEN, Vocabulary
from dlrm_jax.errors import UserError


def learn(values, min_count=1):
    return Vocabulary.learn(np.asarray(values, np.uint32), min_count)


def encode(vocabulary, values):
    missing = np.array([value is None for value in values], bool)
    raw = np.array([value or 0 for value in values], np.uint32)
    return vocabulary.encode(raw, missing).tolist()


def test_frequent_values_first_then_by_value():
    vocabulary = learn([9, 5, 5, 7, 2**32 - 1, 7, 3, 5])
    assert encode(vocabulary, [5, 7, 3, 9, 2**32 - 1]) == [2, 3, 4, 5, 6]
    assert vocabulary.rows == 7


def test_rare_unseen_and_missing_values_have_their_own_ids():
    vocabulary = learn([1, 1, 2], min_count=2)
    assert vocabulary.rows == 3
    assert encode(vocabulary, [1, 2, 3, None]) == [FIRST_VALUE, UNSEEN, UNSEEN, MISSING]


def test_zero_is_a_value_like_others():
    assert encode(learn([0, 0, 4]), [0, None]) == [FIRST_VALUE, MISSING]


def test_a_feature_without_values():
    vocabulary = learn([])
    assert vocabulary.rows == 2
    assert encode(vocabulary, [8, None]) == [UNSEEN, MISSING]


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 9)), st.integers(1, 3))
def test_ids_are_dense_and_ordered_by_frequency(values, min_count):
    vocabulary = learn(values, min_count)
    ids = encode(vocabulary, values)
    kept = {value for value in values if values.count(value) >= min_count}
    assert {i for i in ids if i != UNSEEN} == set(range(FIRST_VALUE, vocabulary.rows))
    assert vocabulary.rows == FIRST_VALUE + len(kept)
    frequency = {i: ids.count(i) for i in range(FIRST_VALUE, vocabulary.rows)}
    assert list(frequency.values()) == sorted(frequency.values(), reverse=True)


@pytest.mark.parametrize("min_count", [0, -3])
def test_min_count_is_at_least_one(min_count):
    with pytest.raises(UserError, match=f"got {min_count}"):
        learn([1], min_count)
