"""Splits of ratings: whole, of the promised sizes, the same again."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_jax.data.movielens.splits import split_rows
from dlrm_jax.errors import UserError

USERS = np.random.default_rng(0).integers(0, 40, 1007)


@pytest.mark.parametrize("how", ["random", "time", "leave_one_out"])
def test_every_rating_is_in_one_split(how):
    rows = split_rows(USERS, how, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(1007))
    assert all((np.diff(part) > 0).all() for part in rows)


def test_a_random_split_draws_tenths_by_its_seed():
    rows = split_rows(USERS, "random", seed=0)
    assert [len(part) for part in rows] == [807, 100, 100]
    again, other = (split_rows(USERS, "random", seed) for seed in (0, 1))
    np.testing.assert_array_equal(rows.test, again.test)
    assert len(np.intersect1d(rows.test, other.test)) < 30  # 10 would be chance
    assert abs(rows.test.mean() - 503) < 100


def test_a_split_by_time_takes_the_last():
    rows = split_rows(USERS, "time", seed=0)
    assert rows.validation.tolist() == list(range(807, 907))
    assert rows.test.tolist() == list(range(907, 1007))


def test_leaving_one_out_takes_the_last_of_each_user():
    users = np.array([4, 0, 4, 4, 0, 2, 4, 0, 2])  # 2 has rated twice, 1 and 3 never
    rows = split_rows(users, "leave_one_out", seed=0)
    assert rows.validation.tolist() == [3, 4]
    assert rows.test.tolist() == [6, 7]


@pytest.mark.parametrize(
    ("users", "how", "message"),
    [
        (9, "random", "a random split needs at least 10 ratings, got 9"),
        (9, "time", "a time split needs at least 10 ratings, got 9"),
        (9, "leave_one_out", "needs a user with at least 3 ratings"),
        (99, "weekday", "one of random, time, leave_one_out, rows=FILE, got 'weekday'"),
    ],
)
def test_what_cannot_be_split_is_said(users, how, message):
    with pytest.raises(UserError, match=message):
        split_rows(np.arange(users), how, seed=0)
