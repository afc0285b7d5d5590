"""The reads of a step: distinct rows, bags, and workloads that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.embedding import Feature, Lookup, Table, Workload
from dlrm_jax.embedding.planning.workload import bags_of, distinct_rows
from dlrm_jax.errors import UserError


@given(st.integers(1, 60_000), st.sampled_from([0.0, 0.5, 1.0, 1.05, 2.0]), st.floats(1.0, 1e7))
def test_distinct_rows_are_the_sum_over_all_rows(rows, exponent, draws):
    p = np.arange(1, rows + 1) ** -exponent
    p /= p.sum()
    with np.errstate(divide="ignore"):
        expected = np.sum(-np.expm1(draws * np.log1p(-np.minimum(p, 1))))
    assert distinct_rows(rows, exponent, draws) == pytest.approx(expected, rel=1e-4)


def test_distinct_rows_are_those_of_draws():
    rng = np.random.default_rng(0)
    p = np.arange(1, 1001) ** -1.05
    drawn = [len(set(rng.choice(1000, 2000, p=p / p.sum()).tolist())) for _ in range(30)]
    assert distinct_rows(1000, 1.05, 2000.0) == pytest.approx(np.mean(drawn), rel=0.02)


def test_a_sequence_is_as_many_bags_of_one_id():
    features = [Feature("f", 3), Feature("g")]
    lookups = [
        Lookup("a", "f", "t"),
        Lookup("b", "g", "t"),
        Lookup("c", "f", "u", pooling="none"),
    ]
    workload = Workload(bags=bags_of(features, lookups))
    assert workload.lengths("t") == {1: 1, 3: 1}
    assert workload.lengths("u") == {1: 3}
    assert (workload.ids("t"), workload.ids("other")) == (4, 1)


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 0}, {"data_groups": 0}, {"zipf_exponent": -1.0}, {"micro_batches": 0}],
)
def test_a_workload_that_cannot_be(changes):
    with pytest.raises(UserError, match=r"workload: .* got .*(0|-1)"):
        Workload(**changes)


def test_micro_batches_divide_the_batch():
    with pytest.raises(UserError, match="divides batch_size 64, got 3"):
        Workload(64, micro_batches=3)
    table, whole, parts = Table("t", 1000, 4), Workload(64), Workload(64, micro_batches=4)
    assert parts.rows_read(table, 64) == 4 * whole.distinct_rows(table, 16)
    assert parts.distinct_share(table, 1) == Workload(16).distinct_share(table, 1)


@pytest.mark.parametrize("lengths", [(), (-3,), (2, 0)])
def test_bags_without_ids_are_refused(lengths):
    with pytest.raises(UserError, match=r"workload: expected the ids of each .* a, .*got"):
        Workload(bags={"a": lengths})
