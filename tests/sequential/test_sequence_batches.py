"""Packed batches: what each device reads of them, and that nothing is lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.sequential.batches import SequenceTraining, question_batches
from dlrm_jax.sequential.packing import SequenceBatch, Shapes
from dlrm_jax.sequential.questions import split_of
from dlrm_jax.sequential.settings import SequentialSettings
from experiments.next_item.planted_order import generate, planted_order

ITEMS = 30
LOG = generate(planted_order(ITEMS, 0), users=40, longest=90, seed=1)
SPLIT = split_of(LOG, "leave_one_out")
SETTINGS = SequentialSettings(batch_size=8, max_length=70, pieces=1, at=(5,), metric="ndcg@5")


def sequences_of(batch: SequenceBatch, devices: int) -> dict[int, np.ndarray]:
    """Items, times, next times and targets of each sequence, by the number of its first token."""
    found = {}
    columns = batch.items, batch.times, batch.next_times, batch.targets
    flat = [x.reshape(devices, -1) for x in columns]
    numbers, weights = (x.reshape(devices, -1) for x in (batch.numbers, batch.sample_weights))
    for device, lengths in enumerate(batch.lengths.reshape(devices, -1)):
        ends = np.cumsum(lengths)
        for start, end in zip(ends - lengths, ends, strict=True):
            own = slice(start, end)
            np.testing.assert_array_equal(np.diff(numbers[device, own]), 1)
            found[int(numbers[device, start])] = np.stack([x[device, own] for x in flat])
        assert (weights[device, : ends[-1]] == 1).all()
        assert (weights[device, ends[-1] :] == 0).all()
        assert (flat[0][device, ends[-1] :] == -1).all()
        assert (flat[3][device, ends[-1] :] == -1).all()
    return found


@pytest.mark.parametrize("devices", [1, 4])
def test_each_token_is_followed_by_its_target(devices: int):
    batches = SequenceTraining(LOG, SPLIT.train, SETTINGS, devices)
    seconds = LOG.times - LOG.times.min()
    seen = []
    for step in range(batches.steps_per_epoch):
        for found in sequences_of(batches[step], devices).values():
            place = next(
                i
                for i in range(len(LOG))
                if np.array_equal(LOG.items[i : i + found.shape[1]], found[0])
                and np.array_equal(seconds[i : i + found.shape[1]], found[1])
            )
            behind = slice(place + 1, place + 1 + found.shape[1])
            np.testing.assert_array_equal(found[2], seconds[behind])
            np.testing.assert_array_equal(found[3], LOG.items[behind])
            user = np.searchsorted(LOG.offsets, place, "right") - 1
            assert behind.stop == SPLIT.train[user, 1]
            assert place == max(SPLIT.train[user, 0], SPLIT.train[user, 1] - 71)
            seen.append(user)
    assert len(set(seen)) == len(seen) == 40


def test_each_interaction_but_the_first_is_a_target_once():
    settings = dataclasses.replace(SETTINGS, pieces=0, max_length=20, batch_size=1)
    batches = SequenceTraining(LOG, SPLIT.train, settings, 1)
    found = []
    for step in range(batches.steps_per_epoch):
        (sequence,) = sequences_of(batches[step], 1).values()
        assert sequence.shape[1] <= 20
        found += zip(sequence[2].tolist(), sequence[3].tolist(), strict=True)
    seconds = LOG.times - LOG.times.min()
    places = np.concatenate([np.arange(start + 1, end) for start, end in SPLIT.train])
    expected = zip(seconds[places].tolist(), LOG.items[places].tolist(), strict=True)
    assert sorted(found) == sorted(expected)


def test_sequences_and_numbers_are_the_same_on_every_mesh():
    one, four = (SequenceTraining(LOG, SPLIT.train, SETTINGS, devices) for devices in (1, 4))
    for step in (0, 7):
        found, other = sequences_of(one[step], 1), sequences_of(four[step], 4)
        assert found.keys() == other.keys()
        for number, sequence in found.items():
            np.testing.assert_array_equal(sequence, other[number])
        places = four[step].candidates.ravel()
        np.testing.assert_array_equal(one[step].candidates.ravel(), places)


def test_candidates_are_all_items_or_drawn_ones():
    whole = SequenceTraining(LOG, SPLIT.train, SETTINGS, 1)[0]
    assert whole.candidates.ravel().tolist() == [*range(ITEMS), -1, -1]
    assert whole.log_q.ravel().tolist() == [0] * ITEMS + [np.inf] * 2
    settings = dataclasses.replace(SETTINGS, negatives=2000, sampler="frequency")
    batches = SequenceTraining(LOG, SPLIT.train, settings, 1)
    drawn = batches[3].candidates.ravel()
    trained = np.concatenate([LOG.items[start:end] for start, end in SPLIT.train])
    expected = np.bincount(trained, minlength=ITEMS) / len(trained)
    found = np.bincount(drawn, minlength=ITEMS) / 2000
    np.testing.assert_allclose(found, expected, atol=0.03)
    np.testing.assert_allclose(batches[3].log_q.ravel(), np.log(2000 * expected[drawn]), rtol=1e-5)
    np.testing.assert_array_equal(drawn, batches[3].candidates.ravel())
    assert not np.array_equal(drawn, batches[4].candidates.ravel())


def test_the_targets_of_a_batch_are_the_candidates():
    settings = dataclasses.replace(SETTINGS, sampler="in_batch", pieces=0, max_length=20)
    batches = SequenceTraining(LOG, SPLIT.train, settings, 2)
    batch = batches[1]
    np.testing.assert_array_equal(batch.candidates, batch.targets)
    # Each interaction but a user's first one is a target once in an epoch.
    targets = np.concatenate([LOG.items[start + 1 : end] for start, end in SPLIT.train])
    shares = np.bincount(targets, minlength=ITEMS) / len(targets)
    there = batch.targets >= 0
    expected = np.log(there.sum() * shares[batch.targets[there]])
    np.testing.assert_allclose(batch.log_q[there], expected, rtol=1e-6)
    assert (batch.log_q[~there] == np.inf).all()


@pytest.mark.parametrize("devices", [1, 4])
def test_every_question_comes_once_with_its_history(devices: int):
    shapes = Shapes(sequences=8, devices=devices, row=8 * 4, candidates=1)
    seen = []
    for numbers, batch, places in question_batches(LOG, SPLIT.test, shapes, 60):
        assert shapes.tokens * devices == batch.items.size
        lengths = batch.lengths
        for number, place in zip(numbers, places, strict=True):
            first, asked = SPLIT.test.firsts[number], SPLIT.test.asked[number]
            own, device = 8 // devices, place // (8 // devices)
            start = lengths[device * own : place].sum()
            tokens = batch.items.reshape(devices, -1)[device, start : start + lengths[place]]
            np.testing.assert_array_equal(tokens, LOG.items[max(first, asked - 60) : asked])
            following = batch.next_times.reshape(devices, -1)[device, start + lengths[place] - 1]
            assert following == LOG.times[asked] - LOG.times.min()
        seen += numbers.tolist()
    assert seen == [*range(40)]


def test_too_few_users_and_times_too_far_apart():
    settings = dataclasses.replace(SETTINGS, batch_size=64)
    with pytest.raises(UserError, match="batch_size: expected at most the 40 pieces"):
        SequenceTraining(LOG, SPLIT.train, settings, 1)
    far = dataclasses.replace(LOG, times=LOG.times * 10**6)
    with pytest.raises(UserError, match="times: expected seconds that are less than 68 years"):
        SequenceTraining(far, SPLIT.train, SETTINGS, 1)


def test_the_longest_history_bounds_the_sizes():
    own, far = (
        SequenceTraining(LOG, SPLIT.train, dataclasses.replace(SETTINGS, max_length=length), 2)
        for length in (int(LOG.lengths.max()), 1_000_000)
    )
    assert own.shapes == far.shapes


@pytest.mark.parametrize("metric", ["foo", "ndcg@0", "coverage@5", "hr@x"])
def test_metrics_that_are_not_computed(metric: str):
    with pytest.raises(UserError, match="metric: expected hr@k, ndcg@k or mrr, got"):
        dataclasses.replace(SETTINGS, metric=metric)
