"""Maps of dynamic ids in plain Python, where kernels aren't built."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from id_map_checks import (
    POLICIES,
    check_against_model,
    check_copies_are_undone,
    check_hostile_ids,
    check_records_of_other_batches,
    check_refused,
    check_saturation,
)

from dlrm_jax.dynamic_ids import id_map
from dlrm_jax.dynamic_ids.id_map import IdMap
from dlrm_jax.dynamic_ids.policy import DynamicIds


@settings(max_examples=8)
@given(POLICIES, st.integers(1, 60), st.integers(0, 2**63 - 1))
def test_it_follows_the_documented_rules(policy, rows, seed):
    check_against_model(policy, rows, seed)


def test_any_64_bits_are_an_id():
    check_hostile_ids()


def test_what_is_refused_changes_nothing():
    check_refused()


def test_counts_saturate():
    check_saturation()


def test_copies_are_undone_by_the_same_records():
    check_copies_are_undone()


def test_records_of_other_batches_are_refused():
    check_records_of_other_batches()


def test_plain_python_is_announced_once(capsys):
    id_map._announce.cache_clear()
    for _ in range(2):
        IdMap(2, DynamicIds())
    assert capsys.readouterr().err.count("mapped in plain Python") == 1


@pytest.mark.parametrize(("evict", "lost"), [("lru", 2), ("lfu", 3), ("distance_lfu", 4)])
def test_each_eviction_takes_another_id(evict, lost):
    ids = IdMap(4, DynamicIds(evict=evict))
    for now, batch in enumerate([[2] * 40, [3], [4] * 3, *[[]] * 50, [3], [9]]):
        ids.translate(np.array(batch, np.int64), now)
    # Seen last at 0, 53 and 2; 40, 2 and 3 times: 40 / 55, 2 / 2 and 3 / 53 by distance.
    rows = ids.find(np.array([2, 3, 4]))
    assert np.flatnonzero(rows == 0).tolist() == [lost - 2]


def test_old_ids_lose_their_rows_and_come_back_as_new_ones():
    ids = IdMap(10, DynamicIds(max_age=16))
    ids.translate(np.array([5, 6]), 0)
    ids.translate(np.array([6]), 10)
    assert ids.translate(np.array([5]), 16).fresh.tolist() == []
    ids.translate(np.array([6]), 20)
    assert ids.translate(np.array([7]), 34).fresh.tolist() == [1]
    assert ids.find(np.array([5, 6])).tolist() == [0, 2]
    assert ids.translate(np.array([5, 6]), 40).fresh.tolist() == [2, 3]


def test_ids_without_a_row_share_the_defaults_evenly():
    ids = IdMap(100, DynamicIds(defaults=4), seed=1)
    rows = ids.find(np.arange(4000))
    assert (np.bincount(rows, minlength=4) > 900).all()
    assert not np.array_equal(
        rows, IdMap(100, DynamicIds(defaults=4), seed=2).find(np.arange(4000))
    )
