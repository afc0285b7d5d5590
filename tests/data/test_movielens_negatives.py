"""Negatives against the sets that they must keep out of."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from dlrm_jax.data.movielens.negatives import Negatives
from dlrm_jax.errors import UserError


def test_negatives_are_different_and_never_rated():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, 400), rng.integers(0, 50, 400)
    rated = collections.defaultdict(set)
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        rated[user].add(item)
    asked = np.repeat(np.unique(users), 7)
    drawn = Negatives(users, items, 50).draw(asked, 20, rng)
    assert drawn.shape == (len(asked), 20)
    for user, row in zip(asked.tolist(), drawn.tolist(), strict=True):
        assert len(set(row)) == 20
        assert not rated[user] & set(row)


def test_every_set_is_as_likely():
    negatives = Negatives(np.array([0, 0]), np.array([1, 4]), 7)
    drawn = negatives.draw(np.zeros(20_000, np.int64), 3, np.random.default_rng(0))
    counts = collections.Counter(map(frozenset, drawn.tolist()))
    assert len(counts) == 10  # of 5 items
    assert np.fromiter(counts.values(), float) == pytest.approx(2000, abs=200)  # 4.7 deviations
    first = np.bincount(drawn[:, 0], minlength=7)
    assert first[[0, 2, 3, 5, 6]] == pytest.approx(4000, abs=270)


def test_all_that_is_left_can_be_drawn_and_no_more():
    negatives = Negatives(np.array([0, 0, 1]), np.array([1, 1, 4]), 4 + 1)
    drawn = negatives.draw(np.array([0, 1]), 4, np.random.default_rng(0))
    assert np.sort(drawn, axis=1).tolist() == [[0, 2, 3, 4], [0, 1, 2, 3]]
    assert negatives.draw(np.array([0]), 0, np.random.default_rng(0)).shape == (1, 0)
    with pytest.raises(UserError, match=r"5 items .* of 5 items one user has only 4 left"):
        negatives.draw(np.array([0]), 5, np.random.default_rng(0))
