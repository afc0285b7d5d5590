"""Meshes and plans for a number of devices: the fastest that fits comes first."""

from __future__ import annotations

import dataclasses

import pytest
from test_planner import SETS, described

from dlrm_jax.embedding import (
    SGD,
    Feature,
    Lookup,
    RowWiseAdagrad,
    Table,
    Workload,
    automatic_plan,
    plan_meshes,
)
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.mesh_plan import planned_mesh
from dlrm_jax.embedding.planning.meshes import plan_on_mesh
from dlrm_jax.embedding.planning.workload import bags_of
from dlrm_jax.errors import UserError

TABLES = [Table("large", 3_000_000, 64), Table("middle", 40_000, 64), Table("small", 20, 64)]
FEATURES = [Feature(table.name, 2) for table in TABLES]
LOOKUPS = [Lookup(table.name, table.name, table.name) for table in TABLES]
BYTES = sum(table.nbytes + 4 * table.rows for table in TABLES)


def planned(devices, placements=None, **more):
    more = {"optimizer": RowWiseAdagrad(0.1), "batch_size": 4096} | more
    return plan_meshes(TABLES, FEATURES, LOOKUPS, devices, placements, **more)


def test_all_meshes_are_planned_and_the_fastest_comes_first():
    found = planned(16)
    assert {each.mesh for each in found} == {"1x16", "2x8", "4x4", "8x2", "16x1"}
    seconds = [each.total_seconds for each in found]
    assert seconds == sorted(seconds)
    for each in found:
        each.plan.check(TABLES)
    assert [each.plan for each in planned(16)] == [each.plan for each in found]


def test_large_tables_are_fully_sharded_where_copies_would_hear_of_many_rows():
    # Between hosts a copy costs bytes on the network for each row that others touch.
    assert planned(128, batch_size=128 * 512)[0].plan.placement("large") == "fully_sharded"
    emulated = planned(128, batch_size=128 * 512, device=DEVICES["cpu"])
    assert all(each.plan.placement("large") != "fully_sharded" for each in emulated)


def test_meshes_without_the_memory_are_left_out():
    limits = Limits(memory=BYTES / 3)
    found = planned(8, limits=limits, device=DEVICES["cpu"])  # without fully sharded tables
    assert {each.mesh for each in found} == {"1x8", "2x4"}
    assert all(each.balance.device_bytes <= limits.memory for each in found)
    assert len(planned(8, limits=limits)) == 4
    with pytest.raises(UserError, match=r"on each of 8 devices, a device has .*table large"):
        planned(8, limits=Limits(memory=BYTES / 10))


def test_groups_within_hosts_come_first_of_equally_fast_meshes():
    replicated = dict.fromkeys(["large", "middle", "small"], "replicated")
    device = dataclasses.replace(DEVICES["h100"], devices_per_host=4)
    found = planned(16, replicated, device=device)
    assert len({round(each.total_seconds, 9) for each in found[:-1]}) == 1
    assert [each.mesh for each in found[:2]] == ["4x4", "8x2"]


def test_collectives_that_only_a_few_tables_need_are_saved():
    tables, features, lookups = described(*SETS["mlperf_v2"])
    workload = Workload(65_536, 16, bags=bags_of(features, lookups))
    more = {"optimizer": RowWiseAdagrad(0.1), "workload": workload, "device": DEVICES["h100"]}
    searched = automatic_plan(tables, 8, **more)
    before = planned_mesh(tables, features, lookups, searched, *more.values())
    found = plan_on_mesh(tables, features, lookups, 8, limits=Limits(), **more)
    assert len(found.collectives) < len(before.collectives)
    assert found.total_seconds < before.total_seconds
    assert found.seconds["starts of collectives"] == found.starts * DEVICES["h100"].latency
    asked = {"C0": "row_wise", "C5": "replicated"}
    kept = plan_on_mesh(tables, features, lookups, 8, asked, limits=Limits(), **more).plan
    assert {name: kept.placement(name) for name in asked} == asked


def alike(
    count,
    rows,
    dim,
    shards,
    batch_size,
    ids,
    placement=None,
    limits=None,
    pooling="none",
    zipf=1.05,
):
    """The plan of so many equal tables on one group, automatic or all in one placement."""
    tables, features, lookups = described(count * [rows], count * [ids], dim)
    lookups = [dataclasses.replace(lookup, pooling=pooling) for lookup in lookups]
    return plan_on_mesh(
        tables,
        features,
        lookups,
        shards,
        {table.name: placement for table in tables} if placement else {},
        optimizer=RowWiseAdagrad(0.1),
        workload=Workload(batch_size, 1, zipf, bags_of(features, lookups)),
        device=DEVICES["h100"],
        limits=limits or Limits(),
    )


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        # Count of tables, rows, width, shards, batch, ids.
        ("column_wise", (1, 2_000_000, 64, 8, 8192, 100)),  # whose means start once
        ("column_wise", (3, 900_000, 64, 8, 16_384, 1)),  # and once for tables of one slab
        ("column_wise", (3, 900_000, 64, 4, 16_384, 1)),
        ("row_wise", (26, 2_000_000, 64, 2, 2048, 1)),  # a few copies cost a collective
    ],
)
def test_a_start_counts_once(placement, problem):
    fastest = alike(*problem, placement=placement).total_seconds
    assert alike(*problem).total_seconds <= 1.0001 * fastest


def test_tables_stay_within_the_memory_where_collectives_are_saved():
    """Column-wise tables have the state of each row on each shard, for which two have room."""
    by_columns, by_rows = 60_000_000 * (32 + 4), 60_000_000 * (256 + 4) / 8
    limits = Limits(1.001 * (2 * by_columns + by_rows))

    def planned(placement=None, limits=None):
        # Of bags of ids that seldom repeat, rows are more bytes than pooled vectors.
        return alike(3, 60_000_000, 64, 8, 8192, 100, placement, limits, pooling="sum", zipf=0.5)

    found = planned(limits=limits)
    assert found.total_seconds > planned("column_wise").total_seconds
    assert found.total_seconds < planned("fully_sharded").total_seconds
    assert found.balance.device_bytes <= limits.memory


@pytest.mark.parametrize("placement", ["row_wise", "column_wise", "fully_sharded"])
def test_the_update_of_all_micro_batches_is_planned(placement):
    def found(micro_batches):
        return plan_on_mesh(
            TABLES,
            FEATURES,
            LOOKUPS,
            4,
            {table.name: placement for table in TABLES},
            optimizer=RowWiseAdagrad(0.1),
            workload=Workload(4096, 2, 1.05, bags_of(FEATURES, LOOKUPS), micro_batches),
            device=DEVICES["h100"],
            limits=Limits(),
        )

    one, eight = (found(n) for n in (1, 8))
    assert eight.temporaries >= one.temporaries
    assert eight.starts > one.starts

    def of_update(plan):
        return [x for x in plan.collectives if x.stage == "update" and x.axes != ("model",)]

    assert of_update(eight) == of_update(one)
    # Rows that several micro-batches have are sent and read in each.
    assert eight.received >= one.received
    assert eight.balance.reads.sum() > one.balance.reads.sum()
    with pytest.raises(UserError, match="divides the micro-batch of 4 samples, got 8"):
        planned(8, micro_batches=1024)


@pytest.mark.parametrize(
    ("placement", "mesh", "batch_size", "described"),
    [
        # Rows, width and ids of each table. Less memory moves one to a placement with larger
        # temporaries, or leaves none for tables.
        (
            "fully_sharded",
            (8, 8),
            262_144,
            [(1_758_464, 64, 1), (13_679, 16, 20), (1_869_770, 64, 1), (155_061, 64, 1)],
        ),
        (
            "column_wise",
            (8, 8),
            65_536,
            [(103, 12, 1), (42, 12, 1), (93_002, 64, 1), (198_494, 16, 20)],
        ),
        (
            "row_wise",
            (8, 8),
            512,
            [(17, 64, 1), (84, 12, 1), (172_932, 12, 20), (6_694, 16, 20)],
        ),
    ],
)
def test_a_plan_is_found_where_tables_and_temporaries_fit_in_one_placement(
    placement, mesh, batch_size, described
):
    tables = [Table(f"t{i}", rows, dim) for i, (rows, dim, _) in enumerate(described)]
    features = [Feature(f"t{i}", ids) for i, (_, _, ids) in enumerate(described)]
    lookups = [Lookup(table.name, table.name, table.name) for table in tables]
    tables.append(Table("kept", 10, 12))
    features.append(Feature("kept", 1))
    lookups.append(Lookup("kept", "kept", "kept"))
    kept = {"kept": "replicated"}

    def planned(placements, memory):
        return plan_on_mesh(
            tables,
            features,
            lookups,
            mesh[1],
            kept | placements,
            optimizer=SGD(0.1),
            workload=Workload(batch_size, mesh[0], bags=bags_of(features, lookups)),
            device=dataclasses.replace(DEVICES["h100"], emulated=placement != "fully_sharded"),
            limits=Limits(memory=memory),
        )

    divided = {f"t{i}" for i, (_, dim, _) in enumerate(described) if dim % mesh[1] == 0}
    names = divided if placement == "column_wise" else {f"t{i}" for i in range(len(described))}
    alike = planned(dict.fromkeys(names, placement), float("inf"))
    tables_bytes = alike.balance.device_bytes
    memory = 1.001 * max(tables_bytes, (tables_bytes + alike.temporaries) / 1.2)
    found = planned({}, memory)
    assert found.balance.device_bytes <= memory
    assert found.balance.device_bytes + found.temporaries <= 1.2 * memory
    assert found.plan.placement("kept") == "replicated"


def test_placements_that_only_some_meshes_have():
    with pytest.raises(UserError, match="table large: expected a placement without shards"):
        planned(8, {"large": "row_wise:0-3"})
    odd = [Table("odd", 5000, 12)]
    lookup = [Lookup("odd", "odd", "odd")]
    found = plan_meshes(odd, [Feature("odd", 1)], lookup, 8, {"odd": "column_wise"}, batch_size=64)
    assert {each.mesh for each in found} == {"2x4", "4x2", "8x1"}


def test_devices_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(UserError, match="divides the batch of 4096 samples, got 24"):
        planned(24)
