"""Arrays side by side do what one array would."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.batches import TrainBatches, evaluation_batches
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.hstacked import HStacked
from dlrm_jax.errors import UserError


def unaligned(array):
    """The same array, at an address as it occurs in a zip file."""
    data = bytearray(array.nbytes + 1)
    data[1:] = array.tobytes()
    moved = np.frombuffer(data, array.dtype, offset=1).reshape(array.shape)
    assert moved.size == 0 or not moved.flags.aligned
    return moved


@st.composite
def arrays(draw):
    """Arrays that stand side by side."""
    n = draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = []
    for width in draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)):
        dtype = draw(st.sampled_from([np.int32, np.int64]))
        array = rng.integers(-1, 2**31 - 1, (n, width), endpoint=True).astype(dtype)
        arrays.append(unaligned(array) if draw(st.booleans()) else array)
    return arrays


def assert_same(a, b):
    assert a.dtype == b.dtype == np.int32
    np.testing.assert_array_equal(a, b)


@given(arrays(), st.data())
def test_reads_as_one_array(arrays, data):
    stacked, whole = HStacked(arrays), np.hstack(arrays).astype(np.int32)
    n = len(whole)
    assert (len(stacked), stacked.shape, stacked.ndim) == (n, whole.shape, 2)
    assert_same(np.asarray(stacked), whole)
    assert_same(np.array(stacked, copy=True), whole)
    assert np.asarray(stacked, np.float64).dtype == np.float64
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1)) if n else st.just([])), np.int64)
    taken = stacked.take(rows, axis=0)
    assert_same(taken, whole[rows])
    assert taken.flags.c_contiguous
    assert taken.flags.aligned
    start, stop = data.draw(st.integers(-40, 40)), data.draw(st.integers(-40, 40))
    assert_same(np.asarray(stacked[start:stop]), whole[start:stop])


def test_slices_copy_nothing():
    arrays = [np.zeros((9, 2), np.int32), unaligned(np.zeros((9, 3), np.int64))]
    for array, cut in zip(arrays, HStacked(arrays)[2:5].arrays, strict=True):
        assert np.shares_memory(array, cut)
    with pytest.raises(ValueError, match="copy"):
        np.array(HStacked(arrays), copy=False)


def split(arrays, cut):
    """Examples that are numbered, in two days."""
    n = len(arrays[0])
    number = np.arange(n, dtype=np.float32)
    days = []
    for rows in (slice(0, cut), slice(cut, n)):
        ids = HStacked([array[rows] for array in arrays]) if len(arrays) > 1 else arrays[0][rows]
        days.append(Examples(number[rows, None], ids, number[rows]))
    return Split(tuple(days))


def test_batches_are_those_of_one_array():
    rng = np.random.default_rng(0)
    whole = rng.integers(-1, 50, (40, 6)).astype(np.int32)
    arrays = [unaligned(whole[:, :1]), whole[:, 1:4].astype(np.int64), whole[:, 4:].copy()]
    for cut in (0, 17):
        stacked, plain = split(arrays, cut), split([whole], cut)
        assert stacked.ids_per_example == 6
        assert_batches(TrainBatches(stacked, 8, 0), TrainBatches(plain, 8, 0), 10)
        a, b = evaluation_batches(stacked[3:], 8), evaluation_batches(plain[3:], 8)
        assert_batches(list(a), list(b), 5)


def assert_batches(found, expected, count):
    for step in range(count):
        assert type(found[step].ids) is np.ndarray
        for a, b in zip(found[step], expected[step], strict=True):
            np.testing.assert_array_equal(a, b)


def test_ids_are_checked_like_those_of_one_array():
    arrays = [np.zeros((100_000, 1), np.int32), unaligned(np.full((100_000, 2), -1, np.int32))]
    check_ids(split(arrays, 10), (1, 7), (1, 2), "train")
    arrays[1] = np.array(arrays[1])
    arrays[1][70_001, 1] = 7
    with pytest.raises(UserError, match=r"train, row 70001 .*feature C2: .*0 to 6.*got 7\."):
        check_ids(split(arrays, 10), (1, 7), (1, 2), "train")


@pytest.mark.parametrize("wrong", [2**32 + 5, -(2**32)])
def test_ids_beyond_32_bits_do_not_wrap(wrong):
    ids = np.zeros((20, 2), np.int64)
    ids[12, 1] = wrong
    data = split([np.zeros((20, 1), np.int32), ids], 5)
    message = rf"train, row 12 .*feature item: .*0 to 6.*got {wrong}\."
    with pytest.raises(UserError, match=message):
        check_ids(data, (1, 7), (1, 2), "train", columns=("user", "item"))
    message = rf"column 1 of array 1 .*32 bits, got {wrong}"
    for read in (np.asarray, lambda ids: ids.take(np.array([7]))):
        with pytest.raises(UserError, match=message):
            read(data.days[1].ids)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([], "none"),
        ([np.zeros((3, 1), np.int32), np.zeros((2, 1), np.int32)], "3 rows .* 2 in array 1"),
        ([np.zeros((3, 1), np.int32), np.zeros((3, 1), np.float32)], "float32 .* array 1"),
        ([np.zeros(3, np.int32)], r"shape \(3,\)"),
        ([np.zeros((3, 2), np.int32, order="F")], "row-major"),
    ],
)
def test_arrays_that_do_not_fit(arrays, message):
    with pytest.raises(UserError, match=message):
        HStacked(arrays)
