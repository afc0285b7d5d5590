import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import numbered

from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.errors import UserError


@st.composite
def lengths_and_cuts(draw):
    n = draw(st.integers(0, 40))
    return n, tuple(draw(st.lists(st.integers(0, n), max_size=5)))


def same(a: Examples, b: Examples) -> bool:
    return a.arrays.keys() == b.arrays.keys() and all(
        np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays
    )


@given(lengths_and_cuts(), st.booleans(), st.data())
def test_days_are_one_after_the_other(shape, weighted, data):
    n, cuts = shape
    whole, split = numbered(n, (), weighted), numbered(n, cuts, weighted)
    assert len(split) == len(whole) == n
    assert len(split.days) == len(cuts) + 1
    np.testing.assert_array_equal(split.labels, whole.labels)
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1)) if n else st.just([])), np.int64)
    assert same(split.take(rows), whole.take(rows))
    np.testing.assert_array_equal(split.take(rows).labels, rows)


@given(lengths_and_cuts(), st.integers(-50, 50), st.integers(-50, 50))
def test_a_slice_has_the_rows_that_a_list_would_give(shape, start, stop):
    n, cuts = shape
    split = numbered(n, cuts)[start:stop]
    assert split.labels.tolist() == list(range(n))[start:stop]
    assert (split.dense_features, split.ids_per_example) == (1, 2)
    assert len(numbered(n, cuts)[: n // 2]) == n // 2


def test_a_slice_copies_nothing():
    split = numbered(10, (4,))
    for day, whole in zip(split[2:7].days, split.days, strict=True):
        assert np.shares_memory(day.ids, whole.ids)


@pytest.mark.parametrize("rows", [[-1], [0, 10], [3, 11, 2]])
def test_rows_outside_of_the_split_are_refused(rows):
    for cuts in ((), (4,)):
        with pytest.raises(IndexError, match="of a split of 10"):
            numbered(10, cuts).take(np.array(rows))


def test_memory_maps_are_read_like_arrays(tmp_path):
    (day,) = numbered(40).days
    np.save(tmp_path / "ids.npy", day.ids)
    mapped = Examples(day.dense, np.load(tmp_path / "ids.npy", mmap_mode="r"), day.labels)
    for split in (Split((mapped,)), Split((mapped[:10], mapped[10:]))):
        ids = split.take(np.arange(5, 20)).ids
        assert type(ids) is np.ndarray
        np.testing.assert_array_equal(ids, day.ids[5:20])


def test_days_that_do_not_fit_are_named():
    (day,), (other,) = numbered(3).days, numbered(3, (), weighted=True).days
    wide = Examples(np.zeros((3, 2), np.float32), day.ids, day.labels)
    with pytest.raises(UserError, match=r"day 1 \(from 0\)"):
        Split((day, wide))
    with pytest.raises(UserError, match=r"weights.*day 2 \(from 0\)"):
        Split((day, day, other))
    with pytest.raises(UserError, match="at least one day"):
        Split(())
    with pytest.raises(UserError, match="follow one another"):
        numbered(9)[::2]
