"""Coverage, and metrics of frequent and rare items, with plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_jax.sequential.metrics import by_stratum, coverage, metrics, strata_of


def test_coverage_counts_each_item_once():
    recommended = np.asarray([[0, 1, 2], [0, 2, 1], [0, 5, 1]])
    assert coverage(recommended, 8, (1, 2, 3)) == {
        "coverage@1": 1 / 8,
        "coverage@2": 4 / 8,
        "coverage@3": 4 / 8,
    }


def test_coverage_of_questions_with_fewer_items():
    recommended = np.asarray([[3, -1], [3, 1]])
    assert coverage(recommended, 4, (1, 2)) == {"coverage@1": 1 / 4, "coverage@2": 2 / 4}


def test_strata_have_a_third_of_the_interactions():
    counts = np.asarray([1, 30, 0, 5, 12, 12, 20, 10])  # 90: 30 | 20 + 12, reaching 62 | the rest
    assert strata_of(counts).tolist() == [2, 0, 2, 2, 1, 2, 1, 2]
    assert strata_of(np.zeros(3, np.int64)).tolist() == [2, 2, 2]


def test_strata_of_any_counts():
    counts = np.random.default_rng(0).integers(0, 50, 200)
    strata, shares = strata_of(counts), []
    for number in range(3):
        shares.append(counts[strata == number].sum() / counts.sum())
        if number:  # none is more frequent than one of the stratum before
            assert counts[strata == number].max() <= counts[strata == number - 1].min()
    np.testing.assert_allclose(shares, 1 / 3, atol=0.02)


def test_metrics_by_stratum():
    places, strata = np.asarray([0, 4, 9, 2]), np.asarray([0, 2, 2, 0])
    found = by_stratum(places, strata, (3,))
    assert list(found) == ["head", "tail"]
    assert found["head"] == {"questions": 2, **metrics(places[[0, 3]], (3,))}
    assert found["head"]["hr@3"] == 1
    assert found["tail"]["hr@3"] == 0
    assert found["tail"]["mrr"] == pytest.approx((1 / 5 + 1 / 10) / 2)
