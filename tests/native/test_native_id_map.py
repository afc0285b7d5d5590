"""Maps of dynamic ids by native kernels: the bits of plain Python, which both are the model's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from id_map_checks import (
    POLICIES,
    assert_same,
    check_against_model,
    check_copies_are_undone,
    check_hostile_ids,
    check_refused,
    check_saturation,
)

from dlrm_jax.dynamic_ids.id_map import IdMap, translate_all
from dlrm_jax.dynamic_ids.native_id_map import NativeIdMap
from dlrm_jax.dynamic_ids.plain_id_map import PlainIdMap
from dlrm_jax.dynamic_ids.policy import DynamicIds

EXAMPLES = POLICIES, st.integers(1, 60), st.integers(0, 2**63 - 1)


@given(*EXAMPLES)
def test_it_follows_the_documented_rules(policy, rows, seed):
    check_against_model(policy, rows, seed)


@pytest.mark.thorough
@settings(max_examples=1100)  # of a thousand ids
@given(*EXAMPLES)
def test_it_follows_the_documented_rules_for_a_million_ids(policy, rows, seed):
    check_against_model(policy, rows, seed)


def test_any_64_bits_are_an_id():
    check_hostile_ids()


def test_what_is_refused_changes_nothing():
    check_refused()


def test_counts_saturate():
    check_saturation()


def test_copies_are_undone_by_the_same_records():
    check_copies_are_undone()


def in_python(rows: int, policy: DynamicIds, seed: int) -> IdMap:
    ids = IdMap(rows, policy, seed)
    ids._engine = PlainIdMap(ids._state)
    return ids


@pytest.mark.parametrize("evict", ["lru", "lfu", "distance_lfu"])
def test_large_maps_are_those_of_plain_python(evict):
    # Blocks of ids, digits of the selection and prefetches ahead have ends in between.
    policy = DynamicIds(admit_count=2, evict=evict, max_age=900_000, defaults=3)
    native, plain = IdMap(3000, policy, 5), in_python(3000, policy, 5)
    assert isinstance(native._engine, NativeIdMap)
    rng, states, undos = np.random.default_rng(0), [], []
    for now in (0, 1, 70_000, 70_001, 5_000_000_000, 5_000_200_000, 5_000_200_001, 2**61):
        batch = rng.zipf(1.2, 4000) % 2500 * 2**50 + now % 7
        states.append(native.arrays())
        found, wanted = (x.translate(batch, now) for x in (native, plain))
        assert np.array_equal(found.rows, wanted.rows)
        assert np.array_equal(found.fresh, wanted.fresh)
        assert_same(native.arrays(), {x: y.tolist() for x, y in plain.arrays().items()})
        undos.append(found.undo)
    for state in reversed(states):
        native.undo(undos.pop())
        assert_same(native.arrays(), {x: y.tolist() for x, y in state.items()})


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    policy = DynamicIds(admit_count=2)
    together = [IdMap(200 + 50 * i, policy, i) for i in range(4)]
    alone = [IdMap(200 + 50 * i, policy, i) for i in range(4)]
    rng = np.random.default_rng(1)
    for now in range(30):
        batches = [rng.zipf(1.1, 120) for _ in together]
        for found, of, batch in zip(
            translate_all(together, batches, now, threads), alone, batches, strict=True
        ):
            wanted = of.translate(batch, now)
            assert np.array_equal(found.rows, wanted.rows)
    for of, other in zip(together, alone, strict=True):
        assert_same(of.arrays(), {x: y.tolist() for x, y in other.arrays().items()})


def test_many_ids_are_found_by_several_threads():
    ids = IdMap(100_001, DynamicIds())
    batch = np.random.default_rng(2).permutation(100_000)
    rows = ids.translate(batch, 0).rows
    assert sorted(rows.tolist()) == list(range(1, 100_001))
    assert np.array_equal(ids.find(batch), rows)
    assert (ids.find(batch + 100_000) == 0).all()
    assert ids.nbytes <= 40 * ids.live


@pytest.mark.parametrize("count", [2, 5, 20])
def test_hardly_any_id_that_is_seen_too_seldom_gets_a_row(count):
    ids = IdMap(4001, DynamicIds(admit_count=count))
    rare = np.arange(40_000)
    for now, batch in enumerate(np.split(rare, 40)):
        ids.translate(batch, now)
    assert ids.live < 0.1 * len(rare) * (1 if count == 2 else 0.05)
    often = np.repeat(np.arange(-5, 0), count)
    assert (ids.translate(often, 40).rows > 0).all()


def test_the_share_of_admitted_ids_is_the_probability():
    ids = IdMap(20_000, DynamicIds(admit_probability=0.25), seed=4)
    batch = np.arange(10_000)
    first = ids.translate(batch, 1)
    assert 2300 < len(first.fresh) < 2700
    assert len(ids.translate(batch, 1).fresh) == 0  # the same draws
    second = len(ids.translate(batch, 2).fresh)
    assert 0.2 < second / (10_000 - len(first.fresh)) < 0.3
