"""Rows that begin afresh: the same values on every mesh and placement, in place, compiled once."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from setups import MESHES
from small_collection import PLANS, TABLES, assert_same, built, random_arrays, read

from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.embedding import (
    SGD,
    Adagrad,
    EmbeddingCollection,
    Feature,
    Lookup,
    Table,
    automatic_plan,
)
from dlrm_jax.embedding.optimizer import OPTIMIZERS, row_optimizer
from dlrm_jax.embedding.plan import PLACEMENTS
from dlrm_jax.embedding.row_reset import CHUNK
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.compiled import compiled_collectives

DYNAMIC = [dataclasses.replace(table, ids=DynamicIds()) for table in TABLES]
FEATURES = [Feature(table.name) for table in TABLES]
LOOKUPS = [Lookup(table.name, table.name, table.name) for table in TABLES]
ROWS = {
    "a": np.array([36, 1, 2, 3, 17]),
    "b": np.array([4]),
    "c": np.array([1, 48, 49]),
    "d": np.array([10, 1]),
    "f": np.array([12]),
}


def collection(mesh: str, plan: str) -> EmbeddingCollection:
    made = make_mesh(mesh)
    chosen = dict(zip([table.name for table in TABLES], PLANS[plan], strict=True))
    placed = automatic_plan(DYNAMIC, made.shape["model"], chosen)
    return EmbeddingCollection(DYNAMIC, FEATURES, LOOKUPS, made, SGD(1.0), placed)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """The arrays after a reset on one device, of which each reset row is checked elsewhere."""
    small = collection("1x1", "replicated")
    arrays = random_arrays(DYNAMIC)
    return read(small, small.reset_rows(built(small, arrays), ROWS, seed=3, step=7))


@pytest.mark.parametrize(
    ("mesh", "plan"),
    [
        pytest.param("2x4", "mixed", marks=pytest.mark.thorough),
        ("4x2", "fully_sharded"),
        ("2x4", "column_wise"),
        *(
            pytest.param(mesh, plan, marks=pytest.mark.thorough)
            for mesh, plan in itertools.product(MESHES, ("mixed", "column_wise", "fully_sharded"))
        ),
    ],
)
def test_every_mesh_and_placement_gives_the_same_rows(mesh, plan, expected):
    small = collection(mesh, plan)
    state = small.reset_rows(built(small, random_arrays(DYNAMIC)), ROWS, seed=3, step=7)
    assert_same(read(small, state), expected)


def test_the_named_rows_alone_are_reset_to_the_values_and_the_state_of_the_start(expected):
    before = random_arrays(DYNAMIC)
    for table in DYNAMIC:
        rows = ROWS.get(table.name, np.zeros(0, int))
        others = np.setdiff1d(np.arange(table.rows), rows)
        for key, array in expected[table.name].items():
            np.testing.assert_array_equal(array[others], before[table.name][key][others])
        values = expected[table.name]["table"][rows]
        assert (np.abs(values) <= table.initial_bound).all()
        assert len(np.unique(values[:, 0])) == len(rows)
        if optimizer := table.row_optimizer(None):
            initial = optimizer.initial_slots(jnp.asarray(values))
            for key, slot in initial.items():
                np.testing.assert_array_equal(expected[table.name][key][rows], slot)


def test_values_depend_on_seed_step_table_and_row():
    tables = [Table(name, 50, 4, ids=DynamicIds()) for name in "ab"]
    small = EmbeddingCollection(
        tables,
        [Feature("one")],
        [Lookup(name, "one", name) for name in "ab"],
        "1x1",
        SGD(1.0),
    )

    def values(rows, seed=0, step=0):
        state = small.from_arrays(lambda table: {"table": np.zeros((50, 4), "f4")}, 0)
        state = small.reset_rows(state, rows, seed, step)
        return {name: arrays["table"] for name, arrays in read(small, state).items()}

    rows = np.array([3, 9])
    found = values({"a": rows})["a"]
    assert not found[:3].any()
    assert len(np.unique(found[rows])) == 8
    np.testing.assert_array_equal(values({"a": rows[::-1], "b": rows})["a"], found)
    for other in (values({"b": rows})["b"], values({"a": rows}, seed=1)["a"]):
        assert (other[rows] != found[rows]).all()
    assert (values({"a": rows}, step=1)["a"][rows] != found[rows]).all()


def test_own_initializers_and_16_bits():
    def sevens(key, shape, dtype):
        return jnp.full(shape, 7, dtype)

    tables = [
        Table("a", 40, 4, "bfloat16", ids=DynamicIds()),
        Table("b", 40, 4, "bfloat16", init=sevens, ids=DynamicIds()),
        Table("c", 40, 4, "bfloat16"),
    ]
    lookups = [Lookup(table.name, f"of {table.name}", table.name) for table in tables]
    features = [Feature(lookup.feature) for lookup in lookups]
    small = EmbeddingCollection(tables, features, lookups, "2x4", Adagrad(0.1))
    rows = {"a": np.arange(40), "b": np.array([5, 39])}
    before = small.init(0)
    as_before = read(small, before)
    found = read(small, small.reset_rows(before, rows, 0, 0))
    assert (found["b"]["table"][[5, 39]] == 7).all()
    assert found["a"]["table"].dtype == jnp.bfloat16
    assert 0.1 < np.abs(found["a"]["table"].astype("f4")).max() < 0.159  # 1 / √40, rounded
    assert_same({"c": found["c"]}, {"c": as_before["c"]})


@pytest.mark.parametrize(
    ("optimizer", "placement"),
    [
        ("rowwise_adagrad", "column_wise"),
        ("optax", "row_wise"),
        *(
            pytest.param(*pair, marks=pytest.mark.thorough)
            for pair in itertools.product([*OPTIMIZERS, "optax"], PLACEMENTS)
        ),
    ],
)
def test_every_optimizer_begins_as_at_the_start(optimizer, placement):
    table = Table("a", 100, 8, ids=DynamicIds())
    mesh = make_mesh("2x4")
    chosen = optax.adam(0.1) if optimizer == "optax" else row_optimizer(optimizer, 0.1)
    placed = "table_wise:1" if placement == "table_wise" else placement
    small = EmbeddingCollection(
        [table],
        [Feature("one")],
        [Lookup("a", "one", "a")],
        mesh,
        chosen,
        automatic_plan([table], 4, {"a": placed}),
    )
    start = read(small, small.init(0))["a"]
    specs = small.array_specs("a")
    used = {key: np.full(x.shape, 5, x.dtype) for key, x in specs.items() if x.ndim}
    state = small.from_arrays(lambda table: used, 0)
    found = read(small, small.reset_rows(state, {"a": np.arange(1, 100)}, 0, 3))["a"]
    for key, slot in start.items():
        if key != "table" and slot.ndim:
            np.testing.assert_array_equal(found[key][1:], slot[1:])
            assert (found[key][0] == 5).all()
        elif slot.ndim == 0:
            np.testing.assert_array_equal(found[key], slot)


@pytest.mark.parametrize("mesh", [pytest.param("1x1", marks=pytest.mark.thorough), "2x4"])
@pytest.mark.parametrize("placement", ["row_wise", "column_wise", "fully_sharded", "replicated"])
def test_no_array_is_as_large_as_a_table_and_nothing_is_sent(mesh, placement):
    table = Table("a", 5_000_011, 8, optimizer=Adagrad(0.1), ids=DynamicIds())
    shards = make_mesh(mesh).shape["model"]
    large = EmbeddingCollection(
        [table],
        [Feature("one")],
        [Lookup("a", "one", "a")],
        mesh,
        plan=automatic_plan([table], shards, {"a": placement}),
    )
    compiled = large._row_reset.lower().compile()
    memory: Any = compiled.memory_analysis()
    spec = large.state_specs().tables["a"]
    nbytes = math.prod(spec.sharding.shard_shape(spec.shape)) * 4
    assert memory.alias_size_in_bytes >= 2 * nbytes  # Adagrad's numbers, too
    lines = 8 * CHUNK * 128 * 4 if large.layout.slabs[0].packed else 0  # of the rows that are reset
    assert memory.temp_size_in_bytes < 0.01 * nbytes + lines
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 0.01 * nbytes
    assert compiled_collectives(compiled) == []


def test_it_is_compiled_once_and_in_chunks():
    rows = 3 * CHUNK
    table = Table("a", rows, 4, ids=DynamicIds())
    small = EmbeddingCollection(
        [table], [Feature("one")], [Lookup("a", "one", "a")], "2x4", SGD(1.0)
    )
    state = small.init(0)
    specs = jax.tree.map(lambda x: x.sharding, state)
    for count in (0, 1, CHUNK, 2 * CHUNK + 1):
        state = small.reset_rows(state, {"a": np.arange(count)}, 0, count)
    program: Any = small._row_reset._run
    assert program._cache_size() == 1
    assert jax.tree.map(lambda x: x.sharding, state) == specs
    whole = small.reset_rows(state, {"a": np.arange(rows)}, 0, 1)
    values = read(small, whole)["a"]["table"]
    other = small.from_arrays(lambda table: {"table": np.zeros((rows, 4), "f4")}, 0)
    last = small.reset_rows(other, {"a": np.array([rows - 1])}, 0, 1)
    np.testing.assert_array_equal(read(small, last)["a"]["table"][-1], values[-1])


def test_errors():
    table = Table("a", 10, 4, ids=DynamicIds())
    small = EmbeddingCollection(
        [table, Table("b", 10, 4)],
        [Feature("one"), Feature("two")],
        [Lookup("a", "one", "a"), Lookup("b", "two", "b")],
        "1x1",
        SGD(1.0),
    )
    state = small.init(0)
    with pytest.raises(UserError, match=r"tables with dynamic ids.*got table 'b'"):
        small.reset_rows(state, {"b": np.array([1])}, 0, 0)
    with pytest.raises(UserError, match=r"0 to 9 of table a, got 10 to 10"):
        small.reset_rows(state, {"a": np.array([10])}, 0, 0)
    for rows, message in (
        (np.array([[1, 2]]), r"shape \[N\], got \[1, 2\]"),
        (np.array([1.0]), "integers, got float64"),
        ("all", "integers, got <U3"),
    ):
        with pytest.raises(UserError, match=f"rows of table a: expected .*{message}"):
            small.reset_rows(state, {"a": rows}, 0, 0)
    for name, numbers in (
        ("step", (0, -1)),
        ("step", (0, 2**32)),
        ("seed", (2**63, 0)),
    ):
        with pytest.raises(UserError, match=f"{name}.*: expected an integer from"):
            small.reset_rows(state, {"a": np.array([1])}, *numbers)
    with pytest.raises(UserError, match=r"its 2 default\(s\)"):
        Table("c", 2, 4, ids=DynamicIds(defaults=2))


def test_rows_may_be_lists():
    table = Table("a", 10, 4, ids=DynamicIds())
    small = EmbeddingCollection(
        [table], [Feature("one")], [Lookup("a", "one", "a")], "1x1", SGD(1.0)
    )
    expected = read(small, small.reset_rows(small.init(0), {"a": np.array([2, 5])}, 2**40, 7))
    found = read(small, small.reset_rows(small.init(0), {"a": [2, 5]}, 2**40, 7))
    assert_same(found, expected)
