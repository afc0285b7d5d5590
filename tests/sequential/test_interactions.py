"""Logs of interactions, their split, and how sequences are dealt out."""

from __future__ import annotations

import datetime

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given

from dlrm_jax.errors import UserError
from dlrm_jax.sequential.dealing import deal_batches, deal_devices, tokens_for
from dlrm_jax.sequential.interactions import Interactions, interactions_of
from dlrm_jax.sequential.questions import split_of

LOG = pl.DataFrame(
    {
        "who": ["b", "a", "b", "a", "b", "c", "b", "b"],
        "what": [7, 5, 5, 9, 7, 5, 9, 9],
        "when": [3, 4, 1, 2, 3, 9, 8, 20],
    }
)


def of_log() -> Interactions:
    return interactions_of(LOG, "who", "what", "when")


def test_users_side_by_side_in_the_order_of_time():
    found = of_log()
    assert found.users.to_list() == ["a", "b", "c"]
    assert found.values.to_list() == [5, 7, 9]
    assert found.offsets.tolist() == [0, 2, 7, 8]
    assert found.times.tolist() == [2, 4, 1, 3, 3, 8, 20, 9]
    assert found.items.tolist() == [2, 0, 0, 1, 1, 2, 2, 0]  # equal times stay in order


def test_times_may_be_dates():
    start = datetime.datetime(2026, 1, 1)
    dates = [start + datetime.timedelta(seconds=x) for x in LOG["when"]]
    found = interactions_of(LOG.with_columns(when=pl.Series(dates)), "who", "what", "when")
    assert (found.times - of_log().times == found.times[0] - 2).all()


def test_parts_of_seconds_are_in_order():
    exact = [0.9, 0.5, 0.1, 0.2, 0.3, 0.9, 0.8, 0.0]
    start = datetime.datetime(2026, 1, 1)
    dates = [start + datetime.timedelta(seconds=x) for x in exact]
    for when in (pl.Series(exact), pl.Series(dates)):
        found = interactions_of(LOG.with_columns(when=when), "who", "what", "when")
        assert found.items.tolist() == [2, 0, 2, 0, 1, 2, 1, 0]
        assert len(set(found.times)) == 1


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (LOG.drop("who"), "the log has no column 'who'; it has 'what', 'when'"),
        (LOG.with_columns(what=pl.lit(None)), "column 'what': 8 of 8 rows have no value, .* row 1"),
        (
            LOG.with_columns(when=pl.lit("x")),
            "column 'when': expected seconds as numbers, or dates",
        ),
        (LOG.with_columns(when=pl.lit(np.inf)), "'when': expected seconds from .*, row 1 has inf"),
        (LOG.with_columns(when=pl.lit(1e30)), "'when': expected seconds from .*, row 1 has 1e.30"),
        (
            LOG.with_columns(when=pl.lit(2**63, pl.UInt64)),
            "'when': expected seconds from .*, row 1 has 9223372036854775808",
        ),
        (
            LOG.with_columns(when=pl.Series([0] * 6 + [2**62, -(2**62)])),
            "'when': expected seconds from 1970 of at most .*, row 7 has 4611686018427387904",
        ),
        (LOG.with_columns(when=pl.lit(np.nan)), "column 'when': 8 of 8 rows have no value"),
        (
            LOG.with_columns(when=pl.lit(datetime.time(3))),
            "column 'when': expected seconds as numbers, or dates, got Time",
        ),
        (
            LOG.with_columns(when=pl.lit(datetime.timedelta(3))),
            "column 'when': expected seconds as numbers, or dates, got Duration",
        ),
        (
            LOG.with_columns(what=pl.when(pl.col("what") == 7).then(np.nan).otherwise(1.5)),
            "column 'what': 2 of 8 rows have no value, the first one is row 1",
        ),
        (LOG.with_columns(what=pl.concat_list("what")), "'what': expected a value a row, got List"),
        (LOG.with_columns(what=pl.struct("what")), "'what': expected a value a row, got Struct"),
        (LOG.clear(), "expected a log of interactions, got none"),
    ],
)
def test_logs_that_are_refused(log: pl.DataFrame, text: str):
    with pytest.raises(UserError, match=text):
        interactions_of(log, "who", "what", "when")


def test_a_column_is_one_thing():
    with pytest.raises(UserError, match="got who, who, when: 'who' is there twice"):
        interactions_of(LOG, "who", "who", "when")


def test_leave_one_out():
    split = split_of(of_log(), "leave_one_out")
    assert split.train.tolist() == [[0, 2], [2, 5], [7, 8]]  # a and c have too few
    assert [x.tolist() for x in split.validation] == [[2], [5]]
    assert [x.tolist() for x in split.test] == [[2], [6]]


def test_split_by_time():
    log = pl.DataFrame({"u": [0] * 10 + [1] * 10, "i": [0, 1] * 10, "t": [*range(0, 20, 2)] * 2})
    split = split_of(interactions_of(log, "u", "i", "t"), "time")
    assert split.train.tolist() == [[0, 8], [10, 18]]  # before 16
    assert [x.tolist() for x in split.validation] == [[0, 10], [8, 18]]
    assert [x.tolist() for x in split.test] == [[0, 10], [9, 19]]


def test_splits_with_nothing_to_ask_for():
    pairs = interactions_of(LOG.filter(pl.col("who") == "a"), "who", "what", "when")
    with pytest.raises(UserError, match="there is no interaction to ask for"):
        split_of(pairs, "leave_one_out")
    with pytest.raises(UserError, match="expected one of leave_one_out, time, got 'x'"):
        split_of(pairs, "x")


LENGTHS = st.lists(st.integers(1, 50), min_size=8, max_size=60)


@given(LENGTHS, st.sampled_from([1, 2, 4, 8]), st.integers(0, 5))
def test_batches_and_devices_have_nearly_as_many_tokens(lengths, devices: int, epoch: int):
    array = np.asarray(lengths)
    dealt = deal_batches(array, 8, 3, epoch)
    assert dealt.shape == (len(lengths) // 8, 8)
    assert len(np.unique(dealt)) == dealt.size  # each at most once
    spread = max(lengths) - min(lengths)
    sums = array[dealt].sum(axis=1)
    assert sums.max() - sums.min() <= spread
    of_devices = array[dealt][:, deal_devices(8, devices)].sum(axis=2)
    assert (of_devices.max(axis=1) - of_devices.min(axis=1) <= spread).all()
    room = tokens_for(array, 8, devices, 16)
    assert room % 16 == 0
    assert of_devices.max() <= room


def test_another_epoch_has_another_order():
    lengths = np.full(64, 5)
    first, second = (deal_batches(lengths, 8, 0, epoch) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, deal_batches(lengths, 8, 0, 0))
