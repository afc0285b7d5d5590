import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.batches import TrainBatches, evaluation_batches, steps_per_epoch
from dlrm_jax.errors import UserError


def numbered(n):
    """Examples that carry their number in every array."""
    number = np.arange(n)
    return Examples(
        number[:, None].astype(np.float32),
        np.stack([number, number + 1], axis=1).astype(np.int32),
        number.astype(np.float32),
    )


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_shows_no_example_twice_and_leaves_out_the_remainder(n, size, seed, epoch):
    if n < size:
        return
    batches = TrainBatches(numbered(n), size, seed)
    steps = steps_per_epoch(numbered(n), size)
    assert steps == n // size
    seen = np.concatenate([batches[epoch * steps + i].labels for i in range(steps)])
    assert len(np.unique(seen)) == steps * size


def test_a_batch_keeps_the_parts_of_an_example_together():
    batch = TrainBatches(numbered(50), 8, 0)[3]
    np.testing.assert_array_equal(batch.dense[:, 0], batch.labels)
    np.testing.assert_array_equal(batch.ids[:, 0], batch.labels)
    np.testing.assert_array_equal(batch.ids[:, 1], batch.labels + 1)
    np.testing.assert_array_equal(batch.weights, np.ones(8))


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


def test_memory_maps_are_read_like_arrays(tmp_path):
    examples = numbered(40)
    np.save(tmp_path / "ids.npy", examples.ids)
    mapped = Examples(examples.dense, np.load(tmp_path / "ids.npy", mmap_mode="r"), examples.labels)
    batch = TrainBatches(mapped, 8, 0)[2]
    assert type(batch.ids) is np.ndarray
    np.testing.assert_array_equal(batch.ids, TrainBatches(examples, 8, 0)[2].ids)


@given(st.integers(0, 50), st.integers(1, 20))
def test_evaluation_sees_every_example_once_in_order(n, size):
    batches = list(evaluation_batches(numbered(n), size))
    assert all(batch.ids.shape == (size, 2) and batch.dense.shape == (size, 1) for batch in batches)
    assert len(batches) == -(-n // size)
    labels = np.concatenate([batch.labels for batch in batches] or [np.empty(0)])
    weights = np.concatenate([batch.weights for batch in batches] or [np.empty(0)])
    np.testing.assert_array_equal(labels[weights == 1], np.arange(n))
    assert weights.sum() == n


def test_padding_is_empty():
    *_, last = evaluation_batches(numbered(5), 4)
    np.testing.assert_array_equal(last.weights, [1, 0, 0, 0])
    np.testing.assert_array_equal(last.dense[1:], 0)
    np.testing.assert_array_equal(last.ids[1:], -1)
    np.testing.assert_array_equal(last.labels[1:], 0)


def test_too_few_examples_for_a_batch():
    with pytest.raises(UserError, match=r"batch of 8 needs .* got 7"):
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
