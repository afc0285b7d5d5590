"""Choices are drawn as they say, and become a log of one row a choice."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.two_tower.planted_taste import GROUPS, as_dataset, generate


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


def test_a_row_of_the_log_has_one_item_and_the_other_known_ones():
    choices = generate(users=30, items=20, known=4, seed=1)
    data = as_dataset(choices, 1)
    ids = np.asarray(data.train.days[0].ids).reshape(4, 30, 6)  # group, four known, item
    for row in ids.reshape(-1, 6):
        assert sorted(row[1:5])[0] == -1
    for user in range(30):
        assert ids[:, user, 5].tolist() == choices.known[user].tolist()
        assert {*ids[0, user, 1:].tolist()} == {-1, *choices.known[user].tolist()}
        assert (ids[:, user, 0] == choices.groups[user]).all()
    test = np.asarray(data.test.days[0].ids)
    np.testing.assert_array_equal(
        test, np.column_stack([choices.groups, choices.known, choices.held_out])
    )
