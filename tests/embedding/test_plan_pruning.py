"""Pruned placements: what is left, and that the others hold no faster plan."""

from __future__ import annotations

import dataclasses

import pytest
from test_planner import SETS, described

from dlrm_jax.embedding import RowWiseAdagrad, Table, Workload
from dlrm_jax.embedding.planning.choices import choices
from dlrm_jax.embedding.planning.costs import Costs
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.pruning import prune
from dlrm_jax.embedding.planning.search import Search
from dlrm_jax.embedding.planning.workload import bags_of

ADAGRAD, H100 = RowWiseAdagrad(0.1), DEVICES["h100"]


def kept(tables, shards, groups, limits, lengths=(1,)):
    workload = Workload(65_536, groups, bags={t.name: lengths for t in tables})
    found = choices(tables, shards, {}, over_all=True)
    return prune(tables, found, shards, ADAGRAD, workload, H100, limits)


def test_tables_that_are_best_alike_on_all_devices_need_no_search():
    tables = [Table("large", 50_000_000, 64), Table("tiny", 5, 64)]
    large, tiny = kept(tables, 8, 16, Limits())
    assert [choice.placement for choice in large] == ["fully_sharded"]
    assert [choice.placement for choice in tiny] == ["replicated"]


def test_a_placement_of_fewer_bytes_is_kept_where_copies_have_no_room():
    tables = [Table(f"t{i}", 400_000, 64) for i in range(4)]
    nbytes = 4 * 400_000 * (256 + 4)
    placements = {choice.placement for choice in kept(tables, 4, 1, Limits(nbytes / 4))[0]}
    assert placements - {"replicated"}


SEQUENCES = {
    # Rows and ids of tables that are read without pooling: each id is a bag.
    "many_bags": ((2_000_000, 500_000), (100, 50)),
    "many_bags_of_few_rows": ((40_000, 1_200_000), (60, 60)),
}


@pytest.mark.parametrize("name", ["kaggle", "mlperf_v2", *SEQUENCES])
def test_pruning_loses_no_time(name):
    rows, lengths, *dim = SETS[name] if name in SETS else (*SEQUENCES[name], 64)
    tables, features, lookups = described(rows, lengths, *dim)
    if name in SEQUENCES:
        lookups = [dataclasses.replace(lookup, pooling="none") for lookup in lookups]
    workload = Workload(65_536, 2, bags=bags_of(features, lookups))
    found = choices(tables, 4, {}, over_all=name in SETS)
    limits = Limits()
    scores = []
    for own in (found, prune(tables, found, 4, ADAGRAD, workload, H100, limits)):
        search = Search(Costs(tables, own, 4, ADAGRAD, workload, H100), limits)
        scores.append(search.score(search.best()))
    assert scores[1].imbalance == 0
    assert scores[1].seconds <= 1.02 * scores[0].seconds
