"""Automatic plans: balanced, near the best there is, within memory, and the same every time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from exact_plan import fastest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_jax.embedding import (
    SGD,
    Adagrad,
    Feature,
    Lookup,
    RowWiseAdagrad,
    Table,
    Workload,
    automatic_plan,
)
from dlrm_jax.embedding.collectives import collectives
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.plan import table_wise
from dlrm_jax.embedding.planning.balance import (
    NETWORK,
    balance,
    row_bytes,
    seconds_by_part,
    seconds_by_resource,
)
from dlrm_jax.embedding.planning.choices import Choice, choices
from dlrm_jax.embedding.planning.costs import Costs
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.search import Search
from dlrm_jax.embedding.planning.timing import SlabCosts
from dlrm_jax.embedding.planning.workload import bags_of
from dlrm_jax.embedding.slab import slab_key
from dlrm_jax.errors import UserError
from dlrm_jax.presets import (
    KAGGLE_ROWS,
    MLPERF_ROWS,
    MLPERF_V2_BAG_LENGTHS,
    MLPERF_V2_ROWS,
    TERABYTE_ROWS,
)

ADAGRAD = RowWiseAdagrad(0.1)
ONE_ID = (1,) * 26
SETS = {
    "kaggle": (KAGGLE_ROWS, ONE_ID, 16),
    "terabyte": (TERABYTE_ROWS, ONE_ID, 64),
    "mlperf_v1": (MLPERF_ROWS, ONE_ID, 128),
    "mlperf_v2": (MLPERF_V2_ROWS, MLPERF_V2_BAG_LENGTHS, 128),
}


def described(rows, lengths, dim, **more):
    """Tables, one feature each, and their lookups."""
    tables = [Table(f"C{i}", n, dim, **more) for i, n in enumerate(rows)]
    features = [Feature(t.name, length) for t, length in zip(tables, lengths, strict=True)]
    return tables, features, [Lookup(t.name, t.name, t.name) for t in tables]


OTHERS = {"kaggle": (8, 16), "terabyte": (16, 8), "mlperf_v1": (1, 4), "mlperf_v2": (1, 16)}


def published(name, mesh):
    marks = () if mesh in ((1, 8), OTHERS[name]) else pytest.mark.thorough
    return pytest.param(name, mesh, marks=marks, id=f"{name} {mesh[0]}x{mesh[1]}")


MESHES = [(1, 4), (1, 8), (1, 16), (16, 8), (8, 16)]


@pytest.mark.parametrize(
    ("name", "mesh"), [published(name, mesh) for name in SETS for mesh in MESHES]
)
def test_published_tables_are_balanced(name, mesh):
    tables, features, lookups = described(*SETS[name])
    groups, shards = mesh
    workload = Workload(65_536, groups, 1.05, bags_of(features, lookups))
    plan = automatic_plan(tables, shards, optimizer=ADAGRAD, workload=workload)
    plan.check(tables)
    layout = make_layout(tables, features, lookups, plan, ADAGRAD)

    exchanged = [
        (each.nbytes, each.needed)
        for each in collectives(layout, {"data": groups, "model": shards}, 65_536)
        if each.kind == "all-to-all" and not each.has_room
    ]
    padded, needed = np.sum([(0, 0), *exchanged], axis=0)
    assert padded <= 1.15 * needed
    found = balance(layout, plan, workload, DEVICES["h100"])
    assert found.reads.max() <= 1.15 * found.reads.mean()
    assert found.needed.max() <= 1.05 * found.needed.mean()
    assert found.device_bytes <= 1.05 * found.needed.mean()
    # Nothing large is held twice.
    total = sum(table.nbytes + 4 * table.rows for table in tables)
    assert found.device_bytes <= max(1.25 * total / shards, 2**26)


def random_problem(seed):
    """A few tables for a few shards, with slabs that aren't summed densely."""
    rng = np.random.default_rng(seed)
    count, shards = int(rng.integers(3, 9)), int(rng.choice([2, 4]))
    rows = np.exp(rng.uniform(np.log(50), np.log(2e7), count)).astype(int)
    rows[0] = 9e5
    lengths = rng.choice([1, 3], count)
    tables, features, lookups = described(rows.tolist(), lengths.tolist(), int(rng.choice([6, 64])))
    bags = bags_of(features, lookups)
    workload = Workload(256, 1, float(rng.choice([0.0, 1.05])), bags)
    found = choices(tables, shards, {})
    return Costs(tables, found, shards, ADAGRAD, workload, DEVICES["h100"])


def test_plans_are_close_to_the_best():
    compared = []
    for seed in range(20):
        costs = random_problem(seed)
        limits = Limits(small=0.0)
        search = Search(costs, limits)
        found, best = search.score(search.best()), fastest(costs, limits)
        assert (best is None) == (found.imbalance > 0)
        if best is not None:
            key = search.score(best[1])
            # The two agree on what is allowed, and on the time it takes.
            assert key.imbalance < 1e-5
            assert key.seconds == pytest.approx(best[0], rel=1e-4)
            compared.append(found.seconds / best[0])
    assert len(compared) >= 15
    assert max(compared) <= 1.1


def test_the_bytes_that_are_searched_are_those_of_the_layout():
    rows, lengths = (7, 300, 5000, 40_000, 1_300_000, 2_000_003), (1, 3, 1, 2, 1, 1)
    tables, features, lookups = described(rows, lengths, 12)
    plan = automatic_plan(
        tables,
        4,
        {"C1": "table_wise:3", "C3": "row_wise:1-3", "C4": "row_wise:0-1", "C5": "row_wise"},
        optimizer=Adagrad(0.1),
    )
    layout = make_layout(tables, features, lookups, plan, Adagrad(0.1))
    own = [[Choice.of(plan, table.name)] for table in tables]
    costs = Costs(tables, own, 4, Adagrad(0.1), Workload(), DEVICES["h100"])
    nbytes = 1 + Search(costs, Limits(memory=1.0)).score([0] * 6).overflow
    found = balance(layout, plan, Workload(), DEVICES["h100"])
    assert nbytes == pytest.approx(found.device_bytes, rel=1e-12)
    np.testing.assert_allclose(found.needed + found.padding, nbytes)
    assert not found.filling.any()


@pytest.mark.parametrize(("width", "stored"), [(50, 64), (64, 64), (96, 128), (10, 16)])
def test_numbers_that_fill_rows_of_tpus_are_padding(width: int, stored: int):
    rows, accumulators = 4_000, 4 * 4_000  # on each of two shards
    tables, features, lookups = described((2 * rows,), ONE_ID[:1], width)
    plan = automatic_plan(tables, 2, {"C0": "row_wise"}, optimizer=ADAGRAD)
    layout = make_layout(tables, features, lookups, plan, ADAGRAD)
    found = balance(layout, plan, Workload(), DEVICES["tpu_v5e"])
    np.testing.assert_array_equal(found.table_bytes, 4 * width * rows)
    np.testing.assert_array_equal(found.needed, 4 * width * rows + accumulators)
    np.testing.assert_array_equal(found.padding, 4 * (stored - width) * rows)
    np.testing.assert_array_equal(found.filling, found.padding)
    assert found.device_bytes == 4 * stored * rows + accumulators


LARGE = described((1_000_000, 800_000, 60_000, 500), ONE_ID[:4], 32)[0]
LARGE_BYTES = sum(t.nbytes + 4 * t.rows for t in LARGE)


def test_a_budget_is_kept():
    # Copies would be fast; without a budget there are some.
    budget = 1.02 * LARGE_BYTES / 4
    plan = automatic_plan(LARGE, 4, optimizer=ADAGRAD, limits=Limits(memory=budget))
    _, features, lookups = described((1, 1, 1, 1), ONE_ID[:4], 32)
    layout = make_layout(LARGE, features, lookups, plan, ADAGRAD)
    assert balance(layout, plan, Workload(), DEVICES["h100"]).device_bytes <= budget


@pytest.mark.parametrize(
    ("placements", "binding"), [({}, "C0 .1,000,000 x 32."), ({"C1": "replicated"}, "C1 .800,000")]
)
def test_an_impossible_budget_says_what_is_needed_and_which_table_binds(placements, binding):
    limits = Limits(memory=0.9 * LARGE_BYTES / 4)
    message = rf"memory: .* need at least [\d.]+ GiB on each of 4 devices, a device has .*{binding}"
    with pytest.raises(UserError, match=message):
        automatic_plan(LARGE, 4, placements, optimizer=ADAGRAD, limits=limits)


def test_the_same_arguments_give_the_same_plan():
    tables, features, lookups = described(*SETS["kaggle"])
    workload = Workload(8192, bags=bags_of(features, lookups))
    plans = {automatic_plan(tables, 4, workload=workload) for _ in range(2)}
    assert len(plans) == 1


def test_on_one_shard_every_table_is_whole():
    plan = automatic_plan(LARGE, 1)
    assert all(plan.of(table.name) == table_wise(table.name, 0) for table in LARGE)


def test_tables_that_differ_have_slabs_of_their_own():
    tables = [
        Table("a", 9000, 8, optimizer=SGD(0.1)),
        Table("b", 9000, 16),
        Table("c", 9000, 8, trainable=False),
        Table("d", 9000, 8, dtype="bfloat16"),
    ]
    found = choices(tables, 2, {})
    costs = Costs(tables, found, 2, ADAGRAD, Workload(), DEVICES["h100"])
    assert [slab.row_bytes for slab in costs.slabs.values()] == [32, 64 + 4, 32, 16 + 4]


def test_the_parts_of_a_step_add_up():
    tables, features, lookups = described(*SETS["terabyte"])
    workload = Workload(65_536, 2, 1.05, bags_of(features, lookups))
    plan = automatic_plan(tables, 4, optimizer=ADAGRAD, workload=workload)
    own = [[Choice.of(plan, table.name)] for table in tables]
    device = dataclasses.replace(DEVICES["h100"], latency=0)  # which is no part
    costs = Costs(tables, own, 4, ADAGRAD, workload, device)
    total = Search(costs, Limits()).score([0] * len(tables)).seconds
    for seconds_by in (seconds_by_part, seconds_by_resource):
        parts = seconds_by(tables, plan, ADAGRAD, workload, DEVICES["h100"])
        assert sum(parts.values()) == pytest.approx(total)
    assert [name for name, seconds in parts.items() if not seconds] == [NETWORK]  # in one host


@pytest.mark.parametrize(("groups", "shards"), [(1, 8), (16, 8), (16, 1)])
def test_the_planner_counts_the_bytes_of_both_stages(groups, shards):
    tables, features, lookups = described(*SETS["mlperf_v2"])
    workload = Workload(512 * groups * shards, groups, 1.05, bags_of(features, lookups))
    placements = {table.name: "fully_sharded" for table in tables}
    plan = automatic_plan(tables, shards, placements, optimizer=ADAGRAD, workload=workload)
    own = [[Choice.of(plan, table.name)] for table in tables]
    costs = Costs(tables, own, shards, ADAGRAD, workload, DEVICES["h100"])
    layout = make_layout(tables, features, lookups, plan, ADAGRAD, groups)
    moved = collectives(layout, {"data": groups, "model": shards}, workload.batch_size)
    sent = sum(each.nbytes for each in moved if each.kind == "all-to-all")
    assert costs.load([0] * len(tables)).exchanged[0] == pytest.approx(sent, rel=0.01)


@settings(max_examples=15)
@given(st.integers(2, 16), st.integers(0, 1000))
def test_any_tables_and_shards_have_a_plan(shards, seed):
    rng = np.random.default_rng(seed)
    tables = [
        Table(f"t{i}", int(rng.integers(1, 5000)), int(rng.integers(1, 40)))
        for i in range(int(rng.integers(1, 7)))
    ]
    automatic_plan(tables, shards, workload=Workload(int(rng.integers(1, 9999)))).check(tables)


@pytest.mark.parametrize("memory", [0.0, -1.0, 1e-300, float("nan")])
def test_limits_without_memory_are_refused(memory):
    with pytest.raises(UserError, match=f"expected a memory of at least 1 byte, got {memory}"):
        Limits(memory=memory)


OPTIMIZERS = [None, SGD(0.1), Adagrad(0.1), ADAGRAD]
SHAPES = st.tuples(
    st.sampled_from([7, 300, 5000, 1_300_000]),
    st.sampled_from([4, 8]),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.booleans(),  # whether it rounds randomly
    st.sampled_from(OPTIMIZERS),
    st.booleans(),  # whether it is trainable
    st.sampled_from(["replicated", "column_wise", "row_wise", "row_wise:0-1", "table_wise:3"]),
    st.integers(1, 3),  # ids of a bag
)


@settings(max_examples=60)
@given(st.lists(SHAPES, min_size=1, max_size=6), st.sampled_from([1, 2]), st.integers(1, 500))
def test_planner_and_layout_agree_on_slabs_and_sums(shapes, groups, samples):
    batch, shards = 8 * samples, 4
    tables = [
        Table(f"t{i}", rows, dim, dtype, None, optimizer, trainable, rounds)
        for i, (rows, dim, dtype, rounds, optimizer, trainable, _, _) in enumerate(shapes)
    ]
    features = [Feature(t.name, shape[-1]) for t, shape in zip(tables, shapes, strict=True)]
    lookups = [Lookup(t.name, t.name, t.name) for t in tables]
    plan = automatic_plan(
        tables, shards, {t.name: s[-2] for t, s in zip(tables, shapes, strict=True)}
    )
    layout = make_layout(tables, features, lookups, plan, ADAGRAD)
    workload = Workload(batch, groups, bags=bags_of(features, lookups))
    own = [[Choice.of(plan, table.name)] for table in tables]
    costs = Costs(tables, own, shards, ADAGRAD, workload, DEVICES["h100"])
    keys = {t.name: slab_key(t, plan.of(t.name), shards, ADAGRAD) for t in tables}
    assert [set(slab.tables) for slab in layout.slabs] == [
        {name for name, other in keys.items() if other == key}
        for key in dict.fromkeys(keys.values())
    ]
    load = costs.load([0] * len(tables))
    for i, (key, found) in enumerate(costs.slabs.items()):
        slab = layout.slab_of(next(name for name, other in keys.items() if other == key))
        assert load.rows[0, i].max() == slab.rows
        assert found.row_bytes == sum(row_bytes(slab, DEVICES["h100"]))
        blocks = [block for block in layout.blocks if block.slab is slab]
        assert found.lengths.tolist() == [block.length for block in blocks]
        positions = load.positions[0, costs.blocks[key]].max(axis=-1)
        assert positions.tolist() == [block.bag.shape[1] for block in blocks]
    for name, key in keys.items():
        slab = layout.slab_of(name)
        alone = SlabCosts(key, [1], shards, workload, DEVICES["h100"])
        assert (alone.width, alone.row_bytes) == (slab.width, sum(row_bytes(slab, DEVICES["h100"])))
        assert alone.needs_sums == slab.needs_sums(False)


def test_bfloat16_rounded_to_the_nearest_is_summed_by_row():
    nearest = Table("a", 10, 4, "bfloat16", optimizer=SGD(0.1), stochastic_rounding=False)
    seconds = []
    for table in (nearest, dataclasses.replace(nearest, stochastic_rounding=True)):
        key = slab_key(table, table_wise("a", 0), 4, None)
        slab = SlabCosts(key, [1], 4, Workload(256), DEVICES["h100"])
        assert slab.needs_sums
        seconds.append(slab.seconds(np.array([1e6]), np.array([[1.0]])).item())
    assert seconds[0] == seconds[1]
