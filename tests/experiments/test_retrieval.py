"""Loss and recall against plain loops, and choices that are drawn as they say."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.two_tower.planted_taste import GROUPS, generate
from experiments.two_tower.retrieval import in_batch_softmax, nearest, recall


def loss_by_loops(scores, item_ids, log_frequency) -> float:
    size = len(scores)
    total = 0.0
    for query in range(size):
        others = [c for c in range(size) if c == query or item_ids[c] != item_ids[query]]
        weights = {c: math.exp(scores[query, c]) / math.exp(log_frequency[c]) for c in others}
        total -= math.log(weights[query] / sum(weights.values()))
    return total / size


def test_the_softmax_corrects_for_frequency_and_counts_the_own_item_once():
    rng = np.random.default_rng(0)
    item_ids = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], np.int32)
    scores = rng.normal(size=(11, 11)).astype(np.float32)
    log_frequency = rng.normal(size=11).astype(np.float32)
    expected = loss_by_loops(scores, item_ids, log_frequency)
    loss = in_batch_softmax(*map(jnp.asarray, (scores, item_ids, log_frequency)))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(4, 12))
def test_recall_ranks_what_is_not_known(seed: int, users: int, items: int):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (users, items)).astype(np.float32)  # with ties
    chosen = np.argsort(rng.random((users, items)), axis=1)[:, :3].astype(np.int32)
    known, held_out = chosen[:, :2], chosen[:, 2]
    found = recall(lambda rows: scores[rows], known, held_out, (1, 3))
    for rank, share in zip((1, 3), found, strict=True):
        hits = 0
        for user in range(users):
            own = held_out[user]
            rivals = set(range(items)) - set(known[user].tolist()) - {own}
            hits += sum(scores[user, item] >= scores[user, own] for item in rivals) < rank
        assert share == pytest.approx(hits / users)


def test_the_nearest_items_are_others_in_the_order_of_their_products():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    assert nearest(vectors, np.array([0, 2]), 2).tolist() == [[1, 3], [3, 1]]


def test_scores_that_are_no_numbers_find_nothing():
    known, held_out = np.zeros((4, 1), np.int32), np.ones(4, np.int32)
    found = recall(lambda rows: np.full((len(rows), 9), np.nan, "f4"), known, held_out, (1, 8))
    assert found == [0, 0]


def test_users_choose_different_items_by_their_taste():
    choices = generate(users=3000, items=20, known=4, seed=1)
    drawn = np.column_stack([choices.known, choices.held_out])
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    np.testing.assert_array_equal(
        choices.popularity(), [np.sum(choices.known == item) for item in range(20)]
    )
    alone = generate(users=30_000, items=6, known=0, seed=2)
    weights = np.exp(alone.taste(np.arange(30_000, dtype=np.int32)))
    expected = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
    measured = np.bincount(alone.held_out, minlength=6) / 30_000
    assert measured == pytest.approx(expected, abs=0.01)  # 0.003 is one standard deviation


def test_users_of_a_group_are_alike():
    choices = generate(users=3000, items=10, known=1, seed=0)
    assert 0 <= choices.groups.min() <= choices.groups.max() < GROUPS
    unit = choices.likes / np.linalg.norm(choices.likes, axis=1, keepdims=True)
    same = choices.groups[:, None] == choices.groups
    cosines = unit @ unit.T
    assert cosines[same & ~np.eye(3000, dtype=bool)].mean() > 0.4
    assert abs(cosines[~same].mean()) < 0.1
