import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import numbered

from dlrm_jax.data.batches import TrainBatches, evaluation_batches, steps_per_epoch
from dlrm_jax.errors import UserError


@given(
    st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 3), st.integers(0, 70)
)
def test_an_epoch_shows_no_example_twice_and_leaves_out_the_remainder(n, size, seed, epoch, window):
    if n < size:
        return
    batches = TrainBatches(numbered(n), size, seed, window)
    steps = steps_per_epoch(numbered(n), size)
    assert steps == n // size
    seen = np.concatenate([batches[epoch * steps + i].labels for i in range(steps)])
    assert len(np.unique(seen)) == steps * size
    assert np.abs(seen - np.arange(len(seen))).max() < (window or n)


@st.composite
def cases(draw):
    """Arguments of batches, and the number of processes that share them."""
    processes, per_process = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    n = draw(st.integers(processes * per_process, 60))
    cuts = tuple(draw(st.lists(st.integers(0, n), max_size=4)))
    return n, cuts, processes * per_process, draw(st.integers(0, 70)), processes


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def joined(parts):
    return [None if x[0] is None else np.concatenate(x) for x in zip(*parts, strict=True)]


@given(cases(), st.booleans(), st.lists(st.integers(0, 100), max_size=6))
def test_days_and_processes_change_nothing(case, weighted, steps):
    n, cuts, size, window, processes = case
    whole = TrainBatches(numbered(n, (), weighted), size, 5, window)
    split = numbered(n, cuts, weighted)
    parts = [TrainBatches(split, size, 5, window, p, processes) for p in range(processes)]
    for step in steps:  # in any order
        assert_same(joined([part[step] for part in parts]), whole[step])


@given(cases(), st.booleans())
def test_days_and_processes_change_nothing_in_evaluation(case, weighted):
    n, cuts, size, _, processes = case
    split = numbered(n, cuts, weighted)
    parts = [evaluation_batches(split, size, p, processes) for p in range(processes)]
    together = [joined(batch) for batch in zip(*parts, strict=True)]
    whole = list(evaluation_batches(numbered(n, (), weighted), size))
    for a, b in zip(together, whole, strict=True):
        assert_same(a, b)


def test_all_examples_shuffled_at_once_is_one_permutation_per_epoch():
    batches = TrainBatches(numbered(50), 8, 3)
    expected = np.random.default_rng([3, 2]).permutation(np.arange(50, dtype=np.int32))
    for step in range(6):
        np.testing.assert_array_equal(
            batches[2 * 6 + step].labels, expected[8 * step : 8 * (step + 1)]
        )


def test_a_batch_keeps_the_parts_of_an_example_together():
    batch = TrainBatches(numbered(50), 8, 0)[3]
    np.testing.assert_array_equal(batch.dense[:, 0], batch.labels)
    np.testing.assert_array_equal(batch.ids[:, 0], batch.labels)
    np.testing.assert_array_equal(batch.ids[:, 1], batch.labels + 1)
    np.testing.assert_array_equal(batch.sample_weights, np.ones(8))


def test_batches_depend_on_seed_and_step_only():
    examples = numbered(100)
    forward = TrainBatches(examples, 8, 3)
    expected = [forward[step].labels for step in range(30)]
    resumed = TrainBatches(examples, 8, 3)
    for step in (29, 12, 0, 11, 23):
        np.testing.assert_array_equal(resumed[step].labels, expected[step])
    assert not np.array_equal(TrainBatches(examples, 8, 4)[0].labels, expected[0])


def test_epochs_are_shuffled_differently():
    batches = TrainBatches(numbered(64), 64, 0)
    first, second = batches[0].labels, batches[1].labels
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.sort(first), np.sort(second))


def test_weights_of_examples_become_those_of_the_batch():
    batch = TrainBatches(numbered(50, (20,), weighted=True), 8, 0)[3]
    np.testing.assert_array_equal(batch.sample_weights, batch.labels / 4)
    *_, last = evaluation_batches(numbered(6, (), weighted=True), 4)
    np.testing.assert_array_equal(last.sample_weights, [1, 1.25, 0, 0])


@given(st.integers(0, 50), st.integers(1, 20))
def test_evaluation_sees_every_example_once_in_order(n, size):
    batches = list(evaluation_batches(numbered(n), size))
    assert all(batch.ids.shape == (size, 2) and batch.dense.shape == (size, 1) for batch in batches)
    assert len(batches) == -(-n // size)
    labels = np.concatenate([batch.labels for batch in batches] or [np.empty(0)])
    weights = np.concatenate([batch.sample_weights for batch in batches] or [np.empty(0)])
    np.testing.assert_array_equal(labels[weights == 1], np.arange(n))
    assert weights.sum() == n


def test_padding_is_empty():
    *_, last = evaluation_batches(numbered(5), 4)
    np.testing.assert_array_equal(last.sample_weights, [1, 0, 0, 0])
    np.testing.assert_array_equal(last.dense[1:], 0)
    np.testing.assert_array_equal(last.ids[1:], -1)
    np.testing.assert_array_equal(last.labels[1:], 0)


def test_too_few_examples_for_a_batch():
    with pytest.raises(UserError, match=r"batch_size: expected at most the 7 training .* got 8"):
        TrainBatches(numbered(7), 8, 0)


def test_arguments_out_of_range():
    with pytest.raises(UserError, match="batch size"):
        TrainBatches(numbered(7), 0, 0)
    with pytest.raises(UserError, match="batch size"):
        evaluation_batches(numbered(7), -1)
    with pytest.raises(UserError, match="seed"):
        TrainBatches(numbered(7), 1, -1)
    with pytest.raises(IndexError):
        TrainBatches(numbered(7), 1, 0)[-1]


@pytest.mark.parametrize(
    ("index", "count", "text"),
    [(0, 3, "8 can't be split evenly over 3"), (2, 2, "process 2 of 2"), (-1, 2, "process -1"),
     (0, 0, "process 0 of 0")],
)  # fmt: skip
def test_processes_out_of_range(index, count, text):
    with pytest.raises(UserError, match=text):
        TrainBatches(numbered(9), 8, 0, process_index=index, process_count=count)
    with pytest.raises(UserError, match=text):
        evaluation_batches(numbered(9), 8, index, count)
