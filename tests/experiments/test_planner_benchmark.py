"""A generated production-like set is planned evenly, in memory, rows and bytes."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_jax.embedding import RowWiseAdagrad, plan_meshes
from dlrm_jax.embedding.planning.limits import Limits
from experiments.benchmarks.production_tables import production_like


def test_rows_fall_by_a_power_law_and_bags_vary():
    tables, features, lookups = production_like(1000, 1)
    assert [tables[rank].rows for rank in (0, 9, 999)] == [10**9, 10**7, 10**3]
    assert {table.dim for table in tables} == {32, 64, 96, 128, 192, 256}
    lengths = [feature.max_ids for feature in features]
    assert min(lengths) == 1
    assert max(lengths) > 190
    assert np.median(lengths) < 20
    assert [lookup.table for lookup in lookups] == [table.name for table in tables]


@pytest.mark.thorough
def test_many_tables_are_planned_evenly_for_many_devices():
    described = production_like(60, 2)
    found = plan_meshes(
        *described,
        64,
        optimizer=RowWiseAdagrad(0.1),
        batch_size=64 * 256,
        limits=Limits(memory=6e10),
    )
    best = found[0]
    assert best.balance.device_bytes <= 1.05 * best.balance.needed.mean()
    assert best.balance.reads.max() <= 1.05 * best.balance.reads.mean()
    needed = sum(each.nbytes if each.has_room else each.needed for each in best.collectives)
    assert best.received <= 1.05 * needed
