import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_collection import (
    FEATURES,
    LOOKUPS,
    PLANS,
    B,
    assert_same,
    built,
    collection,
    random_arrays,
    random_batch,
    read,
)

from dlrm_jax.embedding import SGD, EmbeddingCollection, Feature, Lookup, Table, automatic_plan
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh

MESHES = ["1x1", "2x4", "8x1", "1x8"]
OFTEN = ["2x4"]
# Some tables of the mixed plan or of the half fully sharded one are placed so, or nearly.
OF_OTHERS = ("mixed", "row_wise", "table_wise", "replicated", "fully_sharded", "on_some_shards")
EACH_PLAN = pytest.mark.parametrize(
    "plan",
    [pytest.param(x, marks=pytest.mark.thorough) if x in OF_OTHERS else x for x in PLANS],
)


def pooled_by_hand(weights, ids, id_weights=None, lookups=LOOKUPS):
    """Plain NumPy, one id at a time."""
    ends = dict(zip([f.name for f in FEATURES], np.cumsum([f.max_ids for f in FEATURES])))  # noqa: B905
    length = {f.name: f.max_ids for f in FEATURES}
    pooled = {}
    for lookup in lookups:
        table = np.asarray(weights[lookup.table], np.float64)
        out, sequences = np.zeros((len(ids), table.shape[1])), []
        first = ends[lookup.feature] - length[lookup.feature]
        for sample in range(len(ids)):
            total = 0.0
            sequence = np.zeros((length[lookup.feature], table.shape[1]))
            for column in range(first, ends[lookup.feature]):
                id_ = int(ids[sample, column])
                if id_ < 0:
                    continue
                row = id_ if lookup.id_map is None else lookup.id_map(id_)
                w = 1.0 if id_weights is None else float(id_weights[sample, column])
                sequence[column - first] = w * (table[row] if row < len(table) else np.nan)
                total += w
            sequences.append(sequence)
            out[sample] = sequence.sum(axis=0)
            if lookup.pooling == "mean":
                out[sample] = out[sample] / total if total else 0.0
        pooled[lookup.name] = np.array(sequences) if lookup.pooling == "none" else out
    return pooled


def assert_pooled(pooled, expected):
    assert list(pooled) == list(expected)
    for name, vectors in pooled.items():
        np.testing.assert_allclose(vectors, expected[name], rtol=2e-5, atol=2e-5, err_msg=name)


@functools.cache
def looked_up(mesh, plan):
    """The jitted lookup in the `random_arrays`, and of each trace of it whether it had weights."""
    tables = collection(mesh, plan)
    traces = []

    def lookup(state, ids, id_weights):
        traces.append(id_weights is not None)
        return tables.lookup(state, ids, id_weights)[0]

    state = built(tables, random_arrays())
    compiled = jax.jit(lookup)
    return lambda ids, id_weights=None: compiled(state, ids, id_weights), traces


@functools.cache
def stepped(plan):
    """A collection, and its jitted step with cotangents of ones."""
    tables = collection(plan=plan)

    @jax.jit
    def step(state, ids, id_weights):
        pooled, context = tables.lookup(state, ids, id_weights)
        ones = jax.tree.map(jnp.ones_like, pooled)
        rows = tables.coalesce(tables.send_cotangents(context, ones), sum_duplicates=True)
        return pooled, rows.blocks, tables.apply(state, rows, 2)

    return tables, built(tables, random_arrays()), step


WEIGHTS = {name: arrays["table"] for name, arrays in random_arrays().items()}


@pytest.mark.parametrize(
    ("mesh", "plan"),
    [
        *((mesh, "mixed") for mesh in OFTEN),
        *(pytest.param(x, "mixed", marks=pytest.mark.thorough) for x in MESHES if x not in OFTEN),
        pytest.param("1x8", "table_wise", marks=pytest.mark.thorough),
        pytest.param("1x4", "column_wise", marks=pytest.mark.thorough),
    ],
)
def test_lookup_is_plain_pooling(mesh, plan):
    lookup, _ = looked_up(mesh, plan)
    ids, id_weights = random_batch()
    assert_pooled(lookup(ids), pooled_by_hand(WEIGHTS, ids))
    assert_pooled(lookup(ids, id_weights), pooled_by_hand(WEIGHTS, ids, id_weights))


@EACH_PLAN
def test_lookup_in_a_step_is_plain_pooling(plan):
    _, state, step = stepped(plan)
    ids, id_weights = random_batch()
    for own in (None, id_weights):
        assert_pooled(step(state, ids, own)[0], pooled_by_hand(WEIGHTS, ids, own))


def test_a_mean_whose_weights_sum_to_zero_is_the_zero_vector():
    lookup, _ = looked_up("2x4", "mixed")
    ids, id_weights = random_batch()
    ids[0], id_weights[0] = 1, 0
    ids[3], id_weights[3] = -1, 7  # weights of absent ids count nothing
    ids[4], id_weights[4] = 2, np.tile([1, -1], 9)[: ids.shape[1]]
    pooled = lookup(ids, id_weights)
    for vectors in pooled.values():
        np.testing.assert_array_equal(np.asarray(vectors)[[0, 3]], 0)
    np.testing.assert_array_equal(np.asarray(pooled["e"])[4], 0)  # the weights -1 and 1


@EACH_PLAN
def test_weights_of_absent_ids_count_nowhere(plan):
    _, state, step = stepped(plan)
    ids, id_weights = random_batch()
    wanted = step(state, ids, np.where(ids < 0, 0, id_weights))
    for weight in (np.nan, np.inf):
        found = step(state, ids, np.where(ids < 0, np.float32(weight), id_weights))
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


COLUMNS = sum(feature.max_ids for feature in FEATURES)
# Absent ids and ids past the end of some tables or of all.
IDS = st.lists(
    st.lists(
        st.one_of(st.integers(-1, 4), st.integers(-3, 110)), min_size=COLUMNS, max_size=COLUMNS
    ),
    min_size=8,
    max_size=8,
)


@given(IDS)
def test_any_bags_are_pooled_and_only_bad_ones_are_nan(ids):
    lookup, traces = looked_up("2x4", "mixed")
    ids = np.array(ids + [[-1] * COLUMNS] * (B - len(ids)), np.int32)
    pooled = jax.block_until_ready(lookup(ids))
    assert_pooled(pooled, pooled_by_hand(WEIGHTS, ids))  # NaN equals NaN, at the same places
    assert traces.count(False) == 1


@pytest.mark.parametrize(
    "mesh", [x if x in OFTEN else pytest.param(x, marks=pytest.mark.thorough) for x in MESHES]
)
def test_an_id_out_of_range_spoils_its_bag_only(mesh):
    lookup, _ = looked_up(mesh, "mixed")
    ids, _ = random_batch()
    good = lookup(ids)
    ids[5, 1:4] = [0, 30, 1]  # feature "three": a has id 30, d doesn't
    bad = lookup(ids)
    for name, vectors in bad.items():
        nan = np.isnan(np.asarray(vectors))
        assert np.all(nan[5]) == (name == "d")
        assert not np.any(np.delete(nan, 5, axis=0))
        np.testing.assert_array_equal(np.delete(vectors, 5, axis=0), np.delete(good[name], 5, 0))


@pytest.mark.parametrize("plan", ["mixed", pytest.param("row_wise", marks=pytest.mark.thorough)])
def test_a_map_to_a_negative_id_spoils_its_bag_only(plan):
    changed = {"a_sequence": lambda ids: ids - 3, "c_halves": lambda ids: -(2**31) + ids}
    lookups = [
        dataclasses.replace(x, id_map=changed[x.name]) if x.name in changed else x for x in LOOKUPS
    ]
    tables = collection(plan=plan, lookups=lookups)
    arrays = random_arrays()
    state = built(tables, arrays)
    ids, _ = random_batch()

    @jax.jit
    def step(state, ids):
        pooled, context = tables.lookup(state, ids)
        return pooled, tables.update(state, context, jax.tree.map(jnp.ones_like, pooled), 0)

    pooled, updated = step(state, ids)
    other, two = ids[:, -3:], ids[:, 4:6]
    lacking = {
        "a_sequence": np.repeat(((other >= 0) & (other < 3))[:, :, None], 8, axis=2),
        "c_halves": np.repeat(np.any(two >= 0, axis=1, keepdims=True), 16, axis=1),
    }
    for name, vectors in pooled.items():
        nowhere = np.zeros(vectors.shape, bool)
        np.testing.assert_array_equal(np.isnan(vectors), lacking.get(name, nowhere), err_msg=name)
    assert all(np.isfinite(array["table"]).all() for array in read(tables, updated).values())


@EACH_PLAN
def test_absent_ids_neither_read_nor_write_a_row(plan):
    tables, state, step = stepped(plan)
    absent = np.full((B, COLUMNS), -1, np.int32)
    for id_weights in (np.ones(absent.shape, "f4"), None):
        pooled, _, new = step(state, absent, id_weights)
        assert all(not np.any(np.asarray(vectors)) for vectors in pooled.values())
        assert_same(read(tables, new), random_arrays())


def test_a_map_must_give_integers():
    lookups = [dataclasses.replace(x, id_map=x.id_map and (lambda ids: ids / 2)) for x in LOOKUPS]
    c = collection("1x1", lookups=lookups)
    with pytest.raises(UserError, match="id_map: expected integers, got float32"):
        jax.eval_shape(c.lookup, c.state_specs(), np.zeros((B, COLUMNS), np.int32))


@pytest.mark.parametrize("dtype", ["uint64", "float64"])
def test_a_map_does_not_round_the_ids_of_other_features(dtype):
    """Ids above 2^53 aren't floats, and neither are those beside a map to unsigned ones."""
    with jax.enable_x64(True):
        lookups = [
            dataclasses.replace(x, id_map=x.id_map and (lambda ids: ids.astype(dtype)))
            for x in LOOKUPS
        ]
        c = collection("1x1", lookups=lookups)
        with pytest.raises(UserError, match=f"id_map: expected (signed )?integers, got {dtype}"):
            jax.eval_shape(c.lookup, c.state_specs(), np.zeros((B, COLUMNS), np.int32))


@pytest.mark.parametrize("mesh", ["1x1", "1x2"])
def test_tables_of_two_dtypes_keep_them_between_devices(mesh):
    with jax.enable_x64(True):
        tables = [Table("narrow", 9, 2), Table("wide", 7, 3, dtype="float64")]
        lookups = [Lookup("n", "f", "narrow"), Lookup("w", "f", "wide")]
        plan = automatic_plan(tables, int(mesh[-1]), {"narrow": "row_wise", "wide": "row_wise"})
        c = EmbeddingCollection(tables, [Feature("f")], lookups, make_mesh(mesh), SGD(1.0), plan)
        rng = np.random.default_rng(0)
        given = {t.name: rng.normal(size=(t.rows, t.dim)).astype(t.dtype) for t in tables}
        state = c.from_arrays(lambda table: {"table": given[table.name]}, 0)
        ids = np.array([[3], [5], [3], [0]])

        @jax.jit
        def step(state, ids):
            pooled, residuals = c.lookup(state, ids)
            return pooled, c.update(state, residuals, pooled, 0)

        pooled, new = step(state, ids)
        for (name, table), key in zip(given.items(), "nw", strict=True):
            assert pooled[key].dtype == table.dtype
            np.testing.assert_array_equal(pooled[key], table[ids[:, 0]])
            updated = table.copy()
            updated[[0, 5]] = 0
            updated[3] -= 2 * table[3]
            found = {t.name: arrays["table"] for t, arrays in c.to_arrays(new)}[name]
            np.testing.assert_array_equal(found, updated)
