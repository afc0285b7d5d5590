"""Packed requests: each device has the tokens and candidates of its own, once each."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from random_requests import random_requests

from dlrm_jax.errors import UserError
from dlrm_jax.requests.batches import RequestTraining
from dlrm_jax.requests.packing import RequestBatch
from dlrm_jax.requests.settings import RequestSettings

SETTINGS = RequestSettings(encoder="mean", width=4, max_length=25, batch_size=8)


def pairs(batch: RequestBatch, devices: int, training: RequestTraining) -> list:
    """What each candidate reads: item, label, country, time, and its history with times."""
    shapes = training.shapes
    parts = np.cumsum([shapes.tokens, shapes.tokens, shapes.candidates])
    columns = np.split(batch.ids, parts, axis=1)
    columns += [batch.labels, batch.sample_weights, batch.times, batch.next_times]
    columns += [batch.request_times, batch.lengths, batch.counts, batch.numbers]
    columns += [batch.candidate_numbers]
    found = []
    for device in range(devices):
        seen, did, item, country, label, weight, times, following, at, lengths, counts, *numbers = (
            x.reshape(devices, -1)[device] for x in columns
        )
        ends, up_to = np.cumsum(lengths), np.cumsum(counts)
        assert (seen[ends[-1] :] == -1).all()
        assert (seen[: ends[-1]] >= 0).all()
        assert (item[up_to[-1] :] == -1).all()
        np.testing.assert_array_equal(weight, np.arange(len(weight)) < up_to[-1])
        for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            own = slice(ends[i] - length, ends[i])
            if length:
                np.testing.assert_array_equal(following[own][:-1], times[own][1:])
                assert following[own][-1] == at[i]
            history = tuple(zip(seen[own], did[own], times[own], strict=True))
            for j in range(up_to[i] - count, up_to[i]):
                number = tuple(numbers[0][own]), numbers[1][j]
                found.append(((item[j], label[j], country[i], at[i], history), number))
    return found


@given(
    st.integers(0, 60), st.integers(1, 6), st.sampled_from([1, 2, 4, 8]), st.booleans(),
    st.integers(0, 10),
)  # fmt: skip
def test_every_candidate_reads_its_own_history(
    longest: int, most: int, devices: int, one_by_one: bool, seed: int
):
    requests = random_requests(24, longest, most, seed)
    settings = dataclasses.replace(SETTINGS, one_by_one=one_by_one)
    training, single = (RequestTraining(requests, np.arange(24), settings, x) for x in (devices, 1))
    assert requests.times is not None
    assert requests.history_times is not None
    origin = min(requests.times.min(), *requests.history_times[:], 2**40)
    found = []
    for step in range(training.steps_per_epoch):
        own = pairs(training[step], devices, training)
        # The same on every mesh, with the same numbers.
        assert sorted(own) == sorted(pairs(single[step], 1, single))
        found += [pair for pair, _ in own]
    expected = []
    for i in range(24):
        first, end = requests.history_offsets[i : i + 2]
        first = max(first, end - 25)
        history = zip(
            requests.history["seen"][first:end],
            requests.history["did"][first:end],
            requests.history_times[first:end] - origin,
            strict=True,
        )
        at, country = requests.times[i] - origin, requests.context["country"][i]
        history = tuple(history)
        for j in range(*requests.candidate_offsets[i : i + 2]):
            item = requests.candidates["item"][j]
            expected.append((item, requests.labels[j], country, at, history))
    assert sorted(found) == sorted(expected)


def test_batches_have_nearly_as_many_tokens():
    requests = random_requests(400, 200, 3)
    settings = dataclasses.replace(SETTINGS, batch_size=32, max_length=200)
    training = RequestTraining(requests, np.arange(400), settings, 4)
    sums = [training[step].lengths.reshape(4, -1).sum(axis=1) for step in range(12)]
    assert np.max(sums) <= training.shapes.tokens * 8
    assert np.ptp(np.sum(sums, axis=1)) <= 200
    assert np.ptp(sums, axis=1).max() <= 200
    assert training.filling < 0.35


def test_too_few_requests_and_times_too_far_apart():
    requests = random_requests(10, 5, 2)
    with pytest.raises(UserError, match="batch_size: expected at most the 7 requests with cand"):
        RequestTraining(requests, np.arange(7), SETTINGS, 1)
    assert requests.times is not None
    far = dataclasses.replace(requests, times=requests.times * 10**6)
    with pytest.raises(UserError, match="times: expected seconds that are less than 68 years"):
        RequestTraining(far, np.arange(10), SETTINGS, 1)
    none = dataclasses.replace(
        requests,
        candidate_offsets=np.zeros(11, np.int64),
        candidates={"item": requests.candidates["item"][:0]},
        labels=requests.labels[:0],
    )
    with pytest.raises(UserError, match="batch_size: expected at most the 0 requests with cand"):
        RequestTraining(none, np.arange(10), SETTINGS, 1)


def test_requests_without_candidates_are_left_out_of_training():
    requests = random_requests(40, 20, 3)
    counts = np.where(np.arange(40) % 4 == 0, requests.counts, 0)
    places = requests.candidates_of(np.arange(0, 40, 4))
    some = dataclasses.replace(
        requests,
        candidates={name: x[places] for name, x in requests.candidates.items()},
        candidate_offsets=np.concatenate([[0], np.cumsum(counts)]),
        labels=requests.labels[places],
    )
    settings = dataclasses.replace(SETTINGS, batch_size=2)
    training = RequestTraining(some, np.arange(40), settings, 1)
    assert training.steps_per_epoch == 5
    for step in range(5):
        assert (training[step].counts > 0).all()
        assert training[step].sample_weights.sum() >= 2
