"""Fully sharded tables: a device asks owners for different rows, in as many rounds as needed."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_collection import TABLES, B, assert_same, built, collection, random_arrays, read

from dlrm_jax import backend
from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    Feature,
    Lookup,
    Plan,
    RowWiseAdagrad,
    Table,
    Workload,
    automatic_plan,
    owner_exchange,
    row_split,
)
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.packed_rows import LANES
from dlrm_jax.embedding.plan import fully_sharded
from dlrm_jax.embedding.slab import make_slabs
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh

ROWS, IDS, DIM = 40, 4, 3
RATE, EPS = 0.1, 1e-8


@functools.cache
def stepped(mesh: str, *capacities: int):
    """A collection of one table, and its step where a pair exchanges so many rows in a round.

    In the group, and between groups.
    """
    table = Table("t", ROWS, DIM, dtype="float64")
    args = (
        [table],
        [Feature("f", IDS)],
        [Lookup("f", "f", "t")],
        mesh,
        RowWiseAdagrad(RATE, eps=EPS),
    )
    plan = Plan(make_mesh(mesh).shape["model"], fully_sharded("t"))
    tables = EmbeddingCollection(*args, plan)

    def step(state, ids, count):
        pooled, residuals = tables.lookup(state, ids)
        cotangents = {"f": jnp.sin(pooled["f"])}
        return pooled["f"], tables.update(state, residuals, cotangents, count)

    with pytest.MonkeyPatch.context() as patch:
        if capacities:
            left = itertools.cycle(capacities)
            patch.setattr(owner_exchange, "capacity", lambda *of: next(left))
        example = jnp.zeros((B, IDS), jnp.int32)
        compiled = jax.jit(step).lower(tables.init(0), example, jnp.zeros((), jnp.int32)).compile()
    return tables, compiled


def by_hand(table, ids, steps):
    """Pooled vectors of each step, and the table after them, in NumPy."""
    sums, pooled = np.zeros(ROWS), []
    for _ in range(steps):
        vectors = np.array([table[own[own >= 0]].sum(axis=0) for own in ids])
        pooled.append(vectors)
        gradient = np.zeros_like(table)
        for own, vector in zip(ids, np.sin(vectors), strict=True):
            np.add.at(gradient, own[own >= 0], vector)
        touched = np.unique(ids[ids >= 0])
        sums[touched] += np.mean(gradient[touched] ** 2, axis=1)
        table = table.copy()
        table[touched] -= RATE * gradient[touched] / (np.sqrt(sums[touched])[:, None] + EPS)
    return pooled, table


BAGS = st.lists(st.integers(-1, ROWS - 1), min_size=B * IDS, max_size=B * IDS)


@pytest.mark.parametrize(
    ("mesh", "capacities"),
    [
        pytest.param("2x4", (1, 1), marks=pytest.mark.thorough),
        ("4x2", (3, 2)),
        pytest.param("2x4", (8, 1), marks=pytest.mark.thorough),
        pytest.param("4x2", (1, 8), marks=pytest.mark.thorough),
        pytest.param("1x8", (2,), marks=pytest.mark.thorough),
        pytest.param("8x1", (), marks=pytest.mark.thorough),
    ],
)
@given(bags=BAGS | st.integers(-1, ROWS - 1).map(lambda one: [one] * B * IDS))
def test_any_skew_is_exact_in_any_number_of_rounds(mesh, capacities, bags):
    with jax.enable_x64(True):
        tables, step = stepped(mesh, *capacities)
        ids = np.array(bags, np.int32).reshape(B, IDS)
        table = np.random.default_rng(0).normal(size=(ROWS, DIM))
        state = tables.from_arrays(lambda _: {"table": table}, 0)
        placed, found = tables.put(ids), []
        for count in range(2):
            pooled, state = step(state, placed, jnp.asarray(count, jnp.int32))
            found.append(np.asarray(pooled))
        expected, after = by_hand(table, ids, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        (arrays,) = read(tables, state).values()
        np.testing.assert_allclose(arrays["table"], after, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "rows"),  # the sums of 40 are dense, those of 800 are over touched rows
    [
        (RowWiseAdagrad(0.1), 800),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in ((SGD(0.1), 40), (SGD(0.1), 800), (RowWiseAdagrad(0.1), 40))
        ),
    ],
)
def test_the_bits_dont_depend_on_the_size_of_messages(optimizer, rows):
    rng = np.random.default_rng(1)
    ids = np.minimum(rng.zipf(1.3, (128, 2)) - 1, rows - 1).astype(np.int32)
    args = [Table("t", rows, 8)], [Feature("f", 2)], [Lookup("f", "f", "t")], "2x4", optimizer
    found = []
    for shares in ((0.01, 0.01), (0.3, 0.01), (1.0, 1.0)):
        tables = EmbeddingCollection(*args, Plan(4, fully_sharded("t", *shares)), kernels="jax")

        @jax.jit
        def step(state, ids, count, tables=tables):
            pooled, residuals = tables.lookup(state, ids)
            return tables.update(state, residuals, {"f": jnp.sin(pooled["f"] * 50)}, count)

        state = tables.init(0)
        for count in range(2):
            state = step(state, tables.put(ids), count)
        found.append(read(tables, state))
    for arrays in found[1:]:
        assert_same(arrays, found[0])


@pytest.mark.parametrize(
    "mesh", [*(pytest.param(x, marks=pytest.mark.thorough) for x in ("8x1", "1x8")), "2x4"]
)
def test_a_step_returns_the_shardings_of_init(mesh):
    with jax.enable_x64(True):
        tables, step = stepped(mesh)
        state = tables.init(0)
        _, after = step(state, tables.put(np.zeros((B, IDS), np.int32)), jnp.zeros((), jnp.int32))
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert old.sharding == new.sharding


@pytest.mark.parametrize("first", [0, 5, 2**31 - 3, 7 * 2**30])
def test_rows_are_dealt_out_in_turn(first):
    """Beyond int32, too: a slab may have more rows than one array."""
    rows = np.array([0, 1, 6, 7, 2**31 - 2], np.int32)
    device, local = row_split.place(jnp.asarray(rows), 7, *divmod(first, 7))
    whole = first + rows.astype(np.int64)
    np.testing.assert_array_equal(device, whole % 7)
    np.testing.assert_array_equal(np.asarray(local, np.int64), whole // 7)


def test_every_device_has_its_share_and_no_copy():
    tables = collection("2x4", "fully_sharded")
    assert sum(table.rows for table in TABLES) > 8
    for slab in tables.layout.slabs:
        rows = sum(table.rows for table in slab.tables.values())
        together = LANES if backend.CPU.packed_from else 1
        assert slab.rows == -(-rows // (8 * together)) * together
    state = built(tables, random_arrays())
    for name, array in state.tables.items():
        shards = array.addressable_shards
        assert len({str(shard.index) for shard in shards}) == 8, name


def test_equal_ids_travel_once_in_a_group_and_once_between_groups():
    """The plan's estimates of different rows set the sizes of messages."""
    table, batch = Table("t", 10**6, 16), 2**13
    workload = Workload(batch, data_groups=4, bags={"t": (20,)})
    plan = automatic_plan([table], 8, {"t": "fully_sharded"}, optimizer=SGD(1.0), workload=workload)
    layout = make_layout([table], [Feature("f", 20)], [Lookup("f", "f", "t")], plan, SGD(1.0), 4)
    (slab,) = layout.slabs
    ids = 20 * batch // 32
    mesh_shape = {"data": 4, "model": 8}
    found = owner_exchange.stages(mesh_shape, ("data",), "model", ids, layout.distinct(slab))
    of_device, of_group = (workload.distinct_rows(table, batch / n) for n in (32, 4))
    for stage, rows in zip(found, (of_device, of_group / 8), strict=True):
        assert rows < stage.partners * stage.capacity < 1.35 * rows
    assert of_group / 8 < 0.75 * of_device


def test_a_slab_has_only_rows_that_a_shard_of_a_group_can_number():
    tables = [Table(name, 2**30, 4) for name in "abcde"]
    plan = Plan(2, tuple(piece for table in tables for piece in fully_sharded(table.name)))
    slabs = make_slabs(tables, plan, SGD(1.0), 64)
    assert [list(slab.tables) for slab in slabs] == [["a", "b"], ["c", "d"], ["e"]]
    assert max(slab.rows * 64 for slab in slabs) <= 2**30


def test_on_one_device_nothing_is_sent():
    with jax.enable_x64(True):
        _, step = stepped("1x1")
    assert not re.findall(r"all-to-all|all-reduce", step.as_text() or "")


@pytest.mark.parametrize("share", [0.0, -1.0, 2.0, float("nan")])
@pytest.mark.parametrize("name", ["distinct", "group_distinct"])
def test_a_share_out_of_range_is_refused(name, share):
    pieces = fully_sharded("t", **{"distinct": 0.5, name: share})
    with pytest.raises(UserError, match=f"table t: expected {name} to be a share above 0, up to 1"):
        Plan(4, pieces).check([Table("t", 8, 4)])


def test_a_plan_is_written_and_read():
    plan = Plan(4, fully_sharded("t", 0.25, 0.125))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.placement("t") == "fully_sharded"
    assert plan.describe([Table("t", 2**20, 4)], 2).splitlines()[-1].endswith("2.0, 2.0, 2.0, 2.0")
    for name, value, wanted in (
        ("distinct", 0, "a share above 0, up to 1"),
        ("group_distinct", 2, "a share above 0, up to 1"),
        ("fully_sharded", 1, "true or false"),
    ):
        text = re.sub(rf'"{name}": [\w.]+', f'"{name}": {value}', plan.to_json())
        with pytest.raises(UserError, match=f"plan: piece 0: expected {name} to be {wanted}, got"):
            Plan.from_json(text)


def test_a_plan_with_one_share_is_read():
    """Earlier versions wrote such plans."""
    plan = Plan(4, fully_sharded("t", 0.25))
    text = re.sub(r',\s*"group_distinct": [\d.]+', "", plan.to_json())
    assert "group_distinct" not in text
    assert Plan.from_json(text) == plan


def test_tables_of_a_feature_ask_for_its_rows_once():
    """Were there two requests, a step after their routing would send equal row numbers twice."""
    wide, narrow = Table("wide", ROWS, DIM), Table("narrow", ROWS, 1)
    plan = Plan(4, fully_sharded("wide") + fully_sharded("narrow"))
    tables = EmbeddingCollection(
        [wide, narrow],
        [Feature("f", IDS)],
        [Lookup(table.name, "f", table.name) for table in (wide, narrow)],
        "2x4",
        SGD(RATE),
        plan,
    )
    ids = np.random.default_rng(0).integers(-1, ROWS, (B, IDS)).astype(np.int32)
    values = {
        t.name: np.random.default_rng(1).normal(size=(ROWS, t.dim)).astype("f4")
        for t in (wide, narrow)
    }
    state = tables.from_arrays(lambda table: {"table": values[table.name]}, 0)
    routed = jax.jit(tables.route)(tables.put(ids))
    assert len(routed.requests) == 1
    pooled = jax.jit(tables.pool)(state, routed)
    for name, table in values.items():
        wanted = np.array([table[own[own >= 0]].sum(axis=0) for own in ids])
        np.testing.assert_allclose(pooled[name], wanted, rtol=1e-5, atol=1e-6)
    ones = jax.tree.map(jnp.ones_like, pooled)
    state = jax.jit(tables.update)(state, routed, ones, 0)
    for table in (wide, narrow):
        wanted = values[table.name].copy()
        np.add.at(wanted, ids[ids >= 0], -RATE)
        found = read(tables, state)[table.name]["table"]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
