"""The generated click log: its columns fit each other, and its labels the known probabilities."""

from __future__ import annotations

import collections

import hypothesis
import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from dlrm_jax.data.auc import auc, grouped_auc
from dlrm_jax.data.generated.click_log import SCHEMA, ClickLog, Impressions
from dlrm_jax.errors import UserError

DAYS, EXAMPLES = 3, 12_005


def days(seed: int = 0) -> list[Impressions]:
    return list(ClickLog(500, 200, 0.1, DAYS, seed).each_day(EXAMPLES - 4))  # whole requests


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return pl.concat([day.frame for day in days()])


def test_days_of_impressions_in_the_order_of_time(log: pl.DataFrame):
    assert set(SCHEMA["categorical"]) | {"label"} <= {*log.columns, "label"}
    assert log["time"].is_sorted()
    counted = log.group_by(pl.col("time").dt.date(), maintain_order=True).len()
    assert counted["len"].to_list() == [EXAMPLES] * DAYS
    requests = log.group_by("request_id").agg(pl.len(), pl.col("user_id", "time").n_unique())
    assert requests["len"].max() == 5
    assert requests["user_id"].max() == requests["time"].max() == 1


def test_history_has_the_latest_clicks_before_the_request(log: pl.DataFrame):
    longest, clicks = SCHEMA["bag_lengths"]["last_viewed"], collections.defaultdict(list)
    for _, request in log.group_by("request_id", maintain_order=True):
        user = request["user_id"][0]
        expected = clicks[user][::-1][:longest]
        assert all(bag.to_list() == expected for bag in request["last_viewed"])
        clicks[user] += request.filter("clicked")["item_id"].to_list()
    assert max(map(len, clicks.values())) > longest


def test_labels_are_drawn_from_the_known_probabilities(log: pl.DataFrame):
    p, clicked = log["click_probability"].to_numpy(), log["clicked"].to_numpy()
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1)):
        own = (p >= low) & (p < high)
        deviation = np.sqrt(np.sum(p[own] * (1 - p[own])))
        assert abs(clicked[own].sum() - p[own].sum()) < 5 * deviation
    assert not (log["purchased"] & ~log["clicked"]).any()
    assert 0.01 < log["purchased"].mean() < 0.15  # pyright: ignore[reportOperatorIssue]


def test_what_the_history_is_worth():
    last = days()[-1]
    clicked = last.frame["clicked"].to_numpy()
    assert auc(last.click, clicked) > auc(last.without_history, clicked) + 0.02


def test_users_see_again_what_they_have_clicked_on(log: pl.DataFrame):
    seen = log.select(x=pl.col("item_id").is_in(pl.col("last_viewed")))["x"]
    has_history = log["last_viewed"].list.len() > 0
    share = seen.filter(has_history).mean()
    assert 0.25 < share < 0.4  # pyright: ignore[reportOperatorIssue]
    rates = [log["clicked"].filter(each).mean() for each in (seen, has_history & ~seen)]
    assert rates[0] > 1.5 * rates[1]  # pyright: ignore


def test_items_come_and_go(log: pl.DataFrame):
    by_day = log.group_by(pl.col("time").dt.date()).agg(pl.col("item_id").unique())
    first, *_, last = (set(items) for items in by_day.sort("time")["item_id"])
    numbers = [{int(item[1:]) for item in items} for items in (first, last)]
    assert numbers[0] <= set(range(200))
    assert numbers[1] <= set(range(40, 240))


def test_a_seed_decides_everything(log: pl.DataFrame):
    again = pl.concat([day.frame for day in days()])
    assert again.equals(log)
    assert not days(seed=1)[0].frame.equals(log[:EXAMPLES])


def test_arguments_out_of_range():
    with pytest.raises(UserError, match="drift must lie between 0 and 1, got 2"):
        ClickLog(500, 200, 2, 1, 0)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2), st.booleans()), max_size=25)
)
def test_the_auc_of_groups(rows: list[tuple[int, int, bool]]):
    groups, scores, labels = (np.array([row[i] for row in rows]) for i in range(3))
    each, sizes = [], []
    for group in sorted({row[0] for row in rows}):
        own = groups == group
        value = auc(scores[own].astype(float), labels[own])
        if not np.isnan(value):
            each.append(value)
            sizes.append(own.sum())
    found = grouped_auc(scores.astype(float), labels.astype(float), groups.astype(int))
    expected = np.average(each, weights=sizes) if each else np.nan
    np.testing.assert_allclose(found, expected, rtol=1e-12)
