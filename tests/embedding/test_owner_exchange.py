"""Fully sharded tables: a device asks owners for different rows, in as many rounds as needed."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_collection import TABLES, B, assert_same, built, collection, random_arrays, read

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
from dlrm_jax.embedding.l2 import add_l2
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.plan import fully_sharded
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh

ROWS, IDS, DIM = 40, 4, 3
RATE, EPS = 0.1, 1e-8


@functools.cache
def stepped(mesh: str, capacity: int | None):
    """A collection of one table, and its step where a pair exchanges so many rows in a round."""
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
        if capacity:
            patch.setattr(owner_exchange, "capacity", lambda ids, shards, distinct: capacity)
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
    ("mesh", "capacity"),
    [
        ("2x4", 1),
        pytest.param("1x8", 2, marks=pytest.mark.thorough),
        pytest.param("8x1", None, marks=pytest.mark.thorough),
        ("4x2", 3),
    ],
)
@given(bags=BAGS | st.integers(-1, ROWS - 1).map(lambda one: [one] * B * IDS))
def test_any_skew_is_exact_in_any_number_of_rounds(mesh, capacity, bags):
    with jax.enable_x64(True):
        tables, step = stepped(mesh, capacity)
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


@pytest.mark.parametrize("rows", [40, 800])  # their sums are dense, and over touched rows
@pytest.mark.parametrize("optimizer", [SGD(0.1), RowWiseAdagrad(0.1)])
def test_the_bits_dont_depend_on_the_size_of_messages(rows, optimizer):
    rng = np.random.default_rng(1)
    ids = np.minimum(rng.zipf(1.3, (128, 2)) - 1, rows - 1).astype(np.int32)
    args = [Table("t", rows, 8)], [Feature("f", 2)], [Lookup("f", "f", "t")], "2x4", optimizer
    found = []
    for distinct in (0.01, 0.3, 1.0):
        tables = EmbeddingCollection(*args, Plan(4, fully_sharded("t", distinct)), kernels="jax")

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


@pytest.mark.parametrize("mesh", ["8x1", "1x8", "2x4"])
def test_a_step_returns_the_shardings_of_init(mesh):
    with jax.enable_x64(True):
        tables, step = stepped(mesh, None)
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
        assert slab.rows == -(-rows // 8)
    state = built(tables, random_arrays())
    for name, array in state.tables.items():
        shards = array.addressable_shards
        assert len({str(shard.index) for shard in shards}) == 8, name


def test_equal_ids_of_a_device_travel_once():
    """The plan's estimate of different rows sets the size of a message."""
    table, workload = Table("t", 10**6, 16), Workload(2**13, bags={"t": (20,)})
    plan = automatic_plan([table], 8, {"t": "fully_sharded"}, optimizer=SGD(1.0), workload=workload)
    (piece,) = plan.of("t")
    samples = 2**10
    assert piece.distinct == pytest.approx(
        workload.distinct_rows(table, samples) / 20 / samples, abs=1e-3
    )
    layout = make_layout([table], [Feature("f", 20)], [Lookup("f", "f", "t")], plan, SGD(1.0))
    (slab,) = layout.slabs
    size = owner_exchange.capacity(20 * samples, 8, layout.distinct(slab))
    assert 8 * size < 1.2 * workload.distinct_rows(table, samples)


def test_on_one_device_nothing_is_sent():
    with jax.enable_x64(True):
        _, step = stepped("1x1", None)
    assert not re.findall(r"all-to-all|all-reduce", step.as_text() or "")


@pytest.mark.parametrize("distinct", [0.0, -1.0, 2.0, float("nan")])
def test_a_share_out_of_range_is_refused(distinct):
    with pytest.raises(
        UserError, match="table t: expected distinct to be a share above 0, up to 1"
    ):
        Plan(4, fully_sharded("t", distinct)).check([Table("t", 8, 4)])


def test_a_penalty_is_refused():
    tables = collection("2x4", "fully_sharded")

    def step(state, ids):
        pooled, residuals = tables.lookup(state, ids)
        gradients = tables.coalesce(tables.send_cotangents(residuals, pooled), sum_duplicates=True)
        return add_l2(tables, state, gradients, 0.1)

    with pytest.raises(UserError, match=r"L2 penalty .* got a, b, c, d, e; place them otherwise"):
        jax.eval_shape(step, tables.state_specs(), jnp.zeros((B, 9), jnp.int32))


def test_a_plan_is_written_and_read():
    plan = Plan(4, fully_sharded("t", 0.25))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.placement("t") == "fully_sharded"
    assert plan.describe([Table("t", 2**20, 4)], 2).splitlines()[-1].endswith("2.0, 2.0, 2.0, 2.0")
    for name, value, wanted in (
        ("distinct", 0, "a share above 0, up to 1"),
        ("fully_sharded", 1, "true or false"),
    ):
        text = re.sub(rf'"{name}": [\w.]+', f'"{name}": {value}', plan.to_json())
        with pytest.raises(UserError, match=f"plan: piece 0: expected {name} to be {wanted}, got"):
            Plan.from_json(text)
