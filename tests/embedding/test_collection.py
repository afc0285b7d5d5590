import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_collection import (
    FEATURES,
    LOOKUPS,
    TABLES,
    built,
    collection,
    random_arrays,
    random_batch,
)

from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    Feature,
    Lookup,
    Table,
    automatic_plan,
)
from dlrm_jax.embedding.bags import check_batch
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh


def test_a_plan_for_another_mesh_is_refused():
    with pytest.raises(UserError, match="the plan is for 3 shards, the mesh has 4"):
        collection(plan=automatic_plan(TABLES, 3))


def test_a_plan_of_other_tables_is_refused():
    with pytest.raises(UserError, match="table f: its pieces must hold every row once"):
        collection(plan=automatic_plan(TABLES[:-1], 4))


def test_tables_without_an_optimizer_are_refused_unless_frozen():
    with pytest.raises(UserError, match=r"no optimizer for the table\(s\) e$"):
        collection(optimizer=None)


def test_contradicting_descriptions_are_refused():
    with pytest.raises(UserError, match=r"no lookup reads the table\(s\) f"):
        collection(lookups=LOOKUPS[:-1])


def test_a_mesh_of_other_axes_is_refused():
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    with pytest.raises(UserError, match="expected the axes data and model, got x, y"):
        EmbeddingCollection(TABLES, FEATURES, LOOKUPS, mesh, SGD(0.1))


@pytest.mark.parametrize("dtype", ["int8", "foo"])
def test_vectors_travel_as_floats(dtype):
    with pytest.raises(UserError, match=f"comm_dtype: expected a floating dtype, got {dtype}"):
        EmbeddingCollection(TABLES, FEATURES, LOOKUPS, make_mesh("1x1"), SGD(0.1), None, dtype)


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        (
            jnp.zeros((8, 8), jnp.int32),
            None,
            r"expected \[B, 9\], .* got \[8, 8\]",
        ),
        (jnp.zeros((8, 9, 1), jnp.int32), None, r"expected \[B, 9\], .* got \[8, 9, 1\]"),
        (jnp.zeros((8, 9)), None, "ids: expected signed integers .* got float32"),
        (jnp.zeros((8, 9), jnp.uint32), None, "ids: expected signed integers .* got uint32"),
        (jnp.zeros((8, 9), jnp.int8), None, "ids: expected signed integers .* got int8"),
        (jnp.zeros((8, 9), jnp.int32), jnp.zeros((8, 1)), r"id_weights: expected one for each id"),
        (jnp.zeros((8, 9), jnp.int32), jnp.ones((8, 9), int), "id_weights: .* float32, got int32"),
        (jnp.zeros((8, 9), jnp.int32), jnp.ones((8, 9), "c8"), "expected float32, got complex64"),
        (jnp.zeros((8, 9), jnp.int32), jnp.ones((8, 9), bool), "expected float32, got bool"),
        (jnp.zeros((8, 9), jnp.int32), jnp.ones((8, 9), jnp.bfloat16), "float32, got bfloat16"),
        (jnp.zeros((6, 9), jnp.int32), None, "ids: 6 samples can't be split evenly over the 8"),
    ],
)
def test_batches_are_checked_by_shape(ids, weights, message):
    with pytest.raises(UserError, match=message):
        check_batch(8, FEATURES, ids, weights)


def test_every_lookup_needs_a_cotangent():
    tables = collection()
    state = tables.state_specs()
    ids = jax.ShapeDtypeStruct((8, 9), jnp.int32)

    def send_cotangents(state, ids):
        pooled, context = tables.lookup(state, ids)
        del pooled["b"]
        return tables.send_cotangents(context, pooled)

    with pytest.raises(UserError, match=r"expected one for each .* a, .* d, .*; got a,"):
        jax.eval_shape(send_cotangents, state, ids)


def test_the_abstract_state_is_that_of_init():
    tables = collection()
    found, wanted = tables.state_specs(), tables.init(0)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for shape, array in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding == array.sharding


def test_ids_are_checked_by_name():
    tables = collection()
    ids, _ = random_batch()
    tables.check_ids(ids)
    for (sample, column), id_, message in [
        ((6, 0), 5, r"feature one, sample 6: id 5 .* table b has ids 0\.\.4"),
        ((3, 2), 11, r"feature three, sample 3: id 11 .* table d has ids 0\.\.10"),
        ((0, 4), 29, r"feature two, sample 0: id 29 .* table e has ids 0\.\.28"),
        ((15, 8), -2, r"feature other, sample 15: id -2 .* -1 stands for absent"),
        ((2, 4), 100, r"feature two, sample 2: id 100 .* table c has ids 0\.\.49"),
    ]:
        bad = ids.copy()
        bad[sample, column] = id_
        with pytest.raises(UserError, match=message):
            tables.check_ids(bad)
    for columns in (8, 10):
        with pytest.raises(UserError, match=f"expected 9 id columns, got {columns}"):
            tables.check_ids(np.full((4, columns), -1))


def test_unknown_tables_are_named():
    with pytest.raises(UserError, match=r"table: expected one of .*, got 'zzz'"):
        collection().array_specs("zzz")


@pytest.mark.parametrize(
    ("step", "got"),
    [
        (1.5, r"float64 of shape \[\]"),
        (jnp.arange(2), r"int32 of shape \[2\]"),
        (-1, "-1"),
        (np.int64(-3), "-3"),
    ],
)
def test_the_step_is_an_integer(step, got):
    with pytest.raises(UserError, match=f"step: expected the number of updates .*, got {got}"):
        updated_at(step)


def test_any_integer_is_a_step():
    for number in (3, np.int64(3), jnp.asarray(3)):
        updated_at(number)


def updated_at(step):
    tables, ids = collection(), jnp.zeros((8, 9), jnp.int32)

    def update(state, ids):
        pooled, residuals = tables.lookup(state, ids)
        return tables.update(state, residuals, pooled, step)

    jax.eval_shape(update, tables.state_specs(), ids)


def two_tables(
    placement: str,
    rows: int = 8,
    read: str = "ab",
    pooling: Literal["sum", "mean"] = "sum",
    distinct: float = 1.0,
):
    tables = [Table("a", rows, 4), Table("b", 8, 4)]
    features = [Feature("a"), Feature("b")]
    lookups = [Lookup(name, read[i], name, pooling) for i, name in enumerate("ab")]
    plan = automatic_plan(tables, 2, dict.fromkeys("ab", placement))
    pieces = [dataclasses.replace(x, distinct=distinct) for x in plan.pieces]
    plan = dataclasses.replace(plan, pieces=tuple(pieces))
    return EmbeddingCollection(tables, features, lookups, make_mesh("1x2"), SGD(0.1), plan)


@pytest.mark.parametrize(
    ("placement", "rows"), [("row_wise", 8), ("replicated", 7)], ids=["placement", "rows"]
)
def test_a_state_of_another_placement_or_other_rows_is_refused(placement, rows):
    """Its arrays may have the same names and shapes."""
    other = "table_wise" if placement == "row_wise" else placement
    tables, others = two_tables(placement, rows), two_tables(other)
    state, wrong = tables.state_specs(), others.init(0)
    ids = jnp.zeros((4, 2), jnp.int32)

    def loss(pooled):
        return pooled["a"].sum()

    gradients = jax.eval_shape(tables.value_and_grad(loss, ()), state, ids)[-1]
    for use in (
        lambda: jax.eval_shape(tables.lookup, wrong, ids),
        lambda: jax.eval_shape(tables.value_and_grad(loss, ()), wrong, ids),
        lambda: jax.eval_shape(lambda s, g: tables.apply(s, g, 0), wrong, gradients),
        lambda: list(tables.to_arrays(wrong)),
        lambda: tables.check_copies(wrong),
    ):
        with pytest.raises(
            UserError, match=r"^state: expected one of this collection's tables and"
        ):
            use()


@pytest.mark.parametrize("changed", ["placement", "lookups", "pooling", "capacity"])
def test_ids_that_another_collection_has_routed_are_refused(changed):
    """Their arrays may have the same names and shapes."""
    names = "ab" if changed != "lookups" else "ba"
    placement = "table_wise" if changed == "placement" else "row_wise"
    tables, other = two_tables("row_wise"), two_tables(placement, read=names)
    if changed == "pooling":
        tables, other = two_tables("row_wise", pooling="mean"), two_tables("row_wise")
    if changed == "capacity":  # of the messages, which later rounds depend on
        tables, other = two_tables("fully_sharded"), two_tables("fully_sharded", distinct=0.01)
    state, ids = tables.state_specs(), jnp.zeros((64, 2), jnp.int32)
    wrong, vectors = jax.eval_shape(other.route, ids), dict.fromkeys("ab", jnp.zeros((64, 4)))
    for use in (
        lambda: jax.eval_shape(tables.pool, state, wrong),
        lambda: jax.eval_shape(tables.send_cotangents, wrong, vectors),
        lambda: jax.eval_shape(
            lambda state, routed, vectors: tables.update(state, routed, vectors, 0),
            state,
            wrong,
            vectors,
        ),
    ):
        with pytest.raises(UserError, match=r"^routed: expected ids that this collection has"):
            use()


def test_a_state_stays_that_of_its_collection():
    tables, again = two_tables("row_wise"), two_tables("row_wise")
    ids = jnp.zeros((4, 2), jnp.int32)

    def step(state):
        pooled, residuals = again.lookup(state, ids)
        return again.update(state, residuals, pooled, 0)

    state = tables.state_specs()
    assert jax.tree.structure(jax.eval_shape(step, state)) == jax.tree.structure(state)


def test_descriptions_may_come_one_by_one_and_the_mesh_as_its_shape():
    plan = collection().plan
    found = EmbeddingCollection(iter(TABLES), iter(FEATURES), iter(LOOKUPS), "2x4", SGD(1.0), plan)
    assert found.mesh.devices.shape == (2, 4)
    assert [list(found.tables.values()), found.features] == [TABLES, tuple(FEATURES)]
    with pytest.raises(UserError, match=r"mesh: expected DxM, .* got '2by4'"):
        EmbeddingCollection(TABLES, FEATURES, LOOKUPS, "2by4")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("d", (8, 2), r"lookup d to have the shape of its result, \(8, 1\), got \(8, 2\)"),
        ("d", (16, 1), r"\(8, 1\), got \(16, 1\)"),
        ("a_sequence", (8, 8), r"lookup a_sequence .*, \(8, 3, 8\), got \(8, 8\)"),
    ],
)
def test_cotangents_have_the_shape_of_what_was_looked_up(name, shape, message):
    tables = collection()

    def update(state, ids):
        pooled, residuals = tables.lookup(state, ids)
        return tables.send_cotangents(residuals, {**pooled, name: jnp.zeros(shape)})

    with pytest.raises(UserError, match=message):
        jax.eval_shape(update, tables.state_specs(), jnp.zeros((8, 9), jnp.int32))


@pytest.mark.parametrize(
    "plan",
    [
        "mixed",
        # `test_pipelined.py` trains on tables over all devices.
        pytest.param("half_fully_sharded", marks=pytest.mark.thorough),
        pytest.param("column_wise", marks=pytest.mark.thorough),
    ],
)
def test_ids_can_be_routed_in_another_program_before_the_tables_are_read(plan):
    # Two programs give the same bits where XLA fuses alike. A product that one of them alone fuses
    # with the sum after it isn't rounded there: both become an FMA. With two more lookups of a
    # replicated table e, 2 of its 232 numbers differed in the last bit, and none with
    # --xla_cpu_max_isa=AVX, which has no FMA.
    tables = collection("2x4", plan)
    state = built(tables, random_arrays())
    ids, weights = random_batch()

    def after(pooled, routed, state):
        return pooled, tables.update(state, routed, pooled, 3)

    routed = jax.jit(tables.route)(ids, weights)
    found = jax.jit(lambda state, routed: after(tables.pool(state, routed), routed, state))
    expected = jax.jit(lambda state: after(*tables.lookup(state, ids, weights), state))
    jax.tree.map(np.testing.assert_array_equal, found(state, routed), expected(state))
