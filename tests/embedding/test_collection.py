import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_jax.embedding import (
    SGD,
    Adagrad,
    Adam,
    EmbeddingCollection,
    Feature,
    Lookup,
    Piece,
    Plan,
    RowWiseAdagrad,
    Table,
    automatic_plan,
    logical,
)
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh

MESHES = ["1x1", "2x4", "8x1", "1x8"]
B = 16


def halves(ids):
    return ids // 2


# Rows that don't divide the shards, fewer rows than shards, and widths that do or don't divide
# the devices.
TABLES = [
    Table("a", 37, 8, optimizer=Adagrad(0.1)),
    Table("b", 5, 3, optimizer=RowWiseAdagrad(0.1)),
    Table("c", 50, 16, optimizer=Adam(0.1)),
    Table("d", 11, 1, optimizer=RowWiseAdagrad(0.1)),
    Table("e", 29, 8),
    Table("f", 13, 8, trainable=False),
]
FEATURES = [Feature("one"), Feature("three", 3), Feature("two", 2), Feature("other", 3)]
LOOKUPS = [
    Lookup("a", "three", "a"),
    Lookup("a_mean", "other", "a", "mean"),  # a shared table
    Lookup("b", "one", "b"),
    Lookup("c_halves", "two", "c", "mean", id_map=halves),
    Lookup("d", "three", "d"),
    Lookup("e", "two", "e", "mean"),
    Lookup("e_halves", "three", "e", id_map=halves),
    Lookup("e_one", "one", "e"),
    Lookup("f", "other", "f"),
]
PLANS = {
    "mixed": ["row_wise", "row_wise", "table_wise", "replicated", "table_wise", "replicated"],
    "row_wise": ["row_wise"] * 6,
    "table_wise": ["table_wise"] * 6,
    "replicated": ["replicated"] * 6,
}


def collection(
    mesh_shape="2x4",
    plan: str | Plan = "mixed",
    tables=TABLES,
    lookups=LOOKUPS,
    optimizer: SGD | None = SGD(1.0),  # noqa: B008
):
    mesh = make_mesh(mesh_shape)
    if isinstance(plan, str):
        chosen = dict(zip([t.name for t in tables], PLANS[plan], strict=True))
        plan = automatic_plan(tables, mesh.shape["model"], chosen)
    return EmbeddingCollection(tables, FEATURES, lookups, mesh, optimizer, plan)


def random_arrays(tables=TABLES, seed=0):
    """Logical weights and slots of every table, none of them zero."""
    rng = np.random.default_rng(seed)
    shapes = {"row": lambda t: (t.rows,), "element": lambda t: (t.rows, t.dim)}
    arrays = {}
    for table in tables:
        slots = {} if table.optimizer is None else table.optimizer.slots
        arrays[table.name] = {"weights": rng.normal(size=(table.rows, table.dim)).astype("f4")} | {
            name: rng.uniform(1, 2, size=shapes[kind](table)).astype("f4")
            for name, kind in slots.items()
        }
    return arrays


def built(tables, arrays):
    """The state of a collection that holds these arrays."""
    return tables.build(lambda table: arrays[table.name], 0)


def read(tables, state):
    return {
        table.name: {key: np.asarray(x) for key, x in arrays.items()}
        for table, arrays in tables.read(state)
    }


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, arrays in left.items():
        assert arrays.keys() == right[name].keys()
        for key, x in arrays.items():
            assert x.dtype == right[name][key].dtype
            np.testing.assert_array_equal(x, right[name][key], err_msg=f"{name}.{key}")


def random_batch(seed=0, batch=B, features=FEATURES, rows=5):
    """Ids that every table has, a third of them absent, and weights."""
    rng = np.random.default_rng(seed)
    columns = sum(feature.max_ids for feature in features)
    ids = rng.integers(0, rows, size=(batch, columns)).astype(np.int32)
    ids[rng.random(ids.shape) < 0.3] = -1
    ids[1] = -1  # a sample of empty bags
    ids[2] = rows - 1  # one of equal ids
    return ids, rng.normal(size=ids.shape).astype("f4")


def pooled_by_hand(weights, ids, id_weights=None, lookups=LOOKUPS):
    """Plain NumPy, one id at a time."""
    ends = dict(zip([f.name for f in FEATURES], np.cumsum([f.max_ids for f in FEATURES])))  # noqa: B905
    length = {f.name: f.max_ids for f in FEATURES}
    pooled = {}
    for lookup in lookups:
        table = np.asarray(weights[lookup.table], np.float64)
        out = np.zeros((len(ids), table.shape[1]))
        first = ends[lookup.feature] - length[lookup.feature]
        for sample in range(len(ids)):
            total = 0.0
            for column in range(first, ends[lookup.feature]):
                id_ = int(ids[sample, column])
                if id_ < 0:
                    continue
                row = id_ if lookup.id_map is None else lookup.id_map(id_)
                w = 1.0 if id_weights is None else float(id_weights[sample, column])
                out[sample] += w * (table[row] if row < len(table) else np.nan)
                total += w
            if lookup.pooling == "mean":
                out[sample] = out[sample] / total if total else 0.0
        pooled[lookup.name] = out
    return pooled


def assert_pooled(pooled, expected):
    assert list(pooled) == list(expected)
    for name, vectors in pooled.items():
        np.testing.assert_allclose(vectors, expected[name], rtol=2e-5, atol=2e-5, err_msg=name)


# -- Lookup ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "plan"),
    [*((mesh, "mixed") for mesh in MESHES), ("2x4", "row_wise"), ("1x8", "table_wise")],
)
def test_lookup_is_plain_pooling(mesh, plan):
    tables = collection(mesh, plan)
    arrays = random_arrays()
    state = built(tables, arrays)
    weights = {name: x["weights"] for name, x in arrays.items()}
    ids, id_weights = random_batch()
    lookup = jax.jit(lambda state, ids, w: tables.lookup(state, ids, w)[0])
    assert_pooled(lookup(state, ids, None), pooled_by_hand(weights, ids))
    assert_pooled(lookup(state, ids, id_weights), pooled_by_hand(weights, ids, id_weights))


def test_a_mean_whose_weights_sum_to_zero_is_the_zero_vector():
    tables = collection()
    ids, id_weights = random_batch()
    ids[0], id_weights[0] = 1, 0
    ids[3], id_weights[3] = -1, 7  # weights of absent ids count nothing
    ids[4], id_weights[4] = 2, np.tile([1, -1], 9)[: ids.shape[1]]
    state = built(tables, random_arrays())
    pooled, _ = jax.jit(tables.lookup)(state, ids, id_weights)
    for vectors in pooled.values():
        np.testing.assert_array_equal(np.asarray(vectors)[[0, 3]], 0)
    np.testing.assert_array_equal(np.asarray(pooled["e"])[4], 0)  # the weights -1 and 1


@functools.cache
def compiled_lookup():
    """A collection's lookup, its weights, and how often it was traced."""
    tables = collection()
    arrays = random_arrays()
    traces = []

    def lookup(state, ids):
        traces.append(1)
        return tables.lookup(state, ids)[0]

    weights = {name: x["weights"] for name, x in arrays.items()}
    return functools.partial(jax.jit(lookup), built(tables, arrays)), weights, traces


COLUMNS = sum(feature.max_ids for feature in FEATURES)
# Absent ids and ids past the end of some tables or of all.
IDS = st.lists(
    st.lists(
        st.one_of(st.integers(-1, 4), st.integers(-3, 110)), min_size=COLUMNS, max_size=COLUMNS
    ),
    min_size=8,
    max_size=8,
)


@settings(deadline=None)
@given(IDS)
def test_any_bags_are_pooled_and_only_bad_ones_are_nan(ids):
    lookup, weights, traces = compiled_lookup()
    ids = np.array(ids, np.int32)
    pooled = jax.block_until_ready(lookup(ids))
    assert_pooled(pooled, pooled_by_hand(weights, ids))  # NaN equals NaN, at the same places
    assert len(traces) == 1


@pytest.mark.parametrize("mesh", MESHES)
def test_an_id_out_of_range_spoils_its_bag_only(mesh):
    tables = collection(mesh)
    state = built(tables, random_arrays())
    ids, _ = random_batch()
    lookup = jax.jit(lambda state, ids: tables.lookup(state, ids)[0])
    good = lookup(state, ids)
    ids[5, 1:4] = [0, 30, 1]  # feature "three": a has id 30, e 30 // 2, d doesn't
    bad = lookup(state, ids)
    for name, vectors in bad.items():
        nan = np.isnan(np.asarray(vectors))
        assert np.all(nan[5]) == (name == "d")
        assert not np.any(np.delete(nan, 5, axis=0))
        np.testing.assert_array_equal(np.delete(vectors, 5, axis=0), np.delete(good[name], 5, 0))


@pytest.mark.parametrize("plan", PLANS)
def test_absent_ids_neither_read_nor_write_a_row(plan):
    tables = collection(plan=plan)
    arrays = random_arrays()
    state = built(tables, arrays)
    ids = np.full((B, COLUMNS), -1, np.int32)

    def step(state, ids):
        pooled, context = tables.lookup(state, ids)
        ones = jax.tree.map(jnp.ones_like, pooled)
        return pooled, tables.update(state, context, ones, jnp.asarray(2))

    pooled, state = jax.jit(step)(state, ids)
    assert all(not np.any(np.asarray(vectors)) for vectors in pooled.values())
    assert_same(read(tables, state), arrays)


# -- Initial values, build and read ----------------------------------------------------

PLACED = [
    ("1x1", "mixed"),
    ("2x4", "mixed"),
    ("2x4", "row_wise"),
    ("8x1", "mixed"),
    ("1x8", "row_wise"),
    ("1x8", "table_wise"),
]


def test_initial_values_depend_on_the_seed_and_the_table_alone():
    # More rows than one call of an initializer makes, and one shape under two names.
    tables = [
        Table("long", 16_500, 3),
        TABLES[1],
        TABLES[3],
        Table("c", 2, 1),
        Table("e", 29, 8),
        Table("f", 29, 8),
    ]
    features = [Feature(table.name) for table in tables]
    lookups = [Lookup(t.name, t.name, t.name) for t in tables]

    def initial(mesh, plan, seed, tables=tables):
        mesh = make_mesh(mesh)
        chosen = dict(zip([t.name for t in tables], PLANS[plan], strict=True))
        plan = automatic_plan(tables, mesh.shape["model"], chosen)
        own = EmbeddingCollection(tables, features, lookups, mesh, SGD(1.0), plan)
        return read(own, own.init(seed))

    first = initial("1x1", "mixed", 3)
    for mesh, plan in [PLACED[1], PLACED[3], PLACED[5]]:
        assert_same(initial(mesh, plan, 3), first)
    other = initial("2x4", "mixed", 4)
    for table in tables:
        values = first[table.name]["weights"]
        assert values.shape == (table.rows, table.dim)
        assert np.abs(values).max() <= (1 / table.rows) ** 0.5
        assert len(np.unique(values)) > 0.95 * values.size  # no chunk comes twice
        assert not np.any(values == other[table.name]["weights"])
        for key, slot in first[table.name].items():
            assert key == "weights" or not np.any(slot)
    assert not np.any(first["e"]["weights"] == first["f"]["weights"])


@pytest.mark.parametrize(("mesh", "plan"), [PLACED[0], PLACED[3], PLACED[5]])
def test_given_arrays_are_read_back_to_the_bit(mesh, plan):
    tables = collection(mesh, plan)
    arrays = random_arrays()
    assert_same(read(tables, built(tables, arrays)), arrays)


@pytest.mark.parametrize(("mesh", "plan"), [("2x4", "mixed"), ("1x8", "row_wise")])
def test_large_tables_are_moved_in_chunks_of_rows(mesh, plan, monkeypatch):
    monkeypatch.setattr(logical, "_CHUNK_ROWS", 2)
    tables = collection(mesh, plan)
    arrays = random_arrays()
    assert_same(read(tables, built(tables, arrays)), arrays)


def test_tables_move_between_meshes_and_plans_to_the_bit():
    """Each placement's arrays as they lie, not by way of NumPy, into the next one's."""
    expected = random_arrays()
    tables = collection(*PLACED[0])
    state = built(tables, expected)
    walk = [4, 3, 1]
    for mesh, plan in (PLACED[i] for i in walk):
        arrays = {table.name: x for table, x in tables.read(state)}
        tables = collection(mesh, plan)
        state = built(tables, arrays)
        assert_same(read(tables, state), expected)


def test_what_is_not_given_gets_initial_values():
    tables = collection()
    initial = read(tables, tables.init(5))
    weights = random_arrays()["c"]["weights"]
    state = tables.build(lambda t: {"weights": weights} if t.name == "c" else {}, 5)
    initial["c"]["weights"] = weights
    assert_same(read(tables, state), initial)


def test_logical_describes_what_read_gives():
    tables = collection()
    state = built(tables, random_arrays())
    for table, arrays in tables.read(state):
        described = tables.logical(table.name)
        assert described.keys() == arrays.keys()
        for key, x in arrays.items():
            assert (x.shape, x.dtype) == (described[key].shape, described[key].dtype)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weights": np.zeros((37, 7))}, r"table a: weights must have .* \(37, 8\), got \(37, 7\)"),
        ({"accumulator": np.zeros(37)}, r"table a: accumulator must have .*, got \(37,\)"),
        ({"momentum": np.zeros(37)}, r"table a has weights, accumulator, but 'momentum' was given"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, message):
    with pytest.raises(UserError, match=message):
        collection().build(lambda table: arrays if table.name == "a" else {}, 0)


# -- Descriptions ----------------------------------------------------------------------


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


# -- Gradients -------------------------------------------------------------------------

# More rows on a shard than a batch has ids, so that touched rows are gathered, and fewer, so
# that they are summed densely.
SPARSE = [
    Table("a", 6007, 8, "float64"),
    Table("b", 5, 3, "float64"),
    Table("c", 1999, 16, "float64"),
    Table("d", 1501, 1, "float64"),
    Table("e", 2903, 8, "float64"),
    Table("f", 13, 8, "float64"),
]


def scalar(pooled):
    """Some function of all vectors in which no two entries play the same part."""
    total = 0.0
    for name in sorted(pooled):
        x = pooled[name]
        total += jnp.sum(jnp.sin(x * jnp.arange(1, x.size + 1).reshape(x.shape)))
    return total


def pooled_densely(weights, ids, id_weights):
    """Through ``table[ids]``, for jax to differentiate."""
    ends = np.cumsum([feature.max_ids for feature in FEATURES])
    columns = {f.name: slice(end - f.max_ids, end) for f, end in zip(FEATURES, ends, strict=True)}
    pooled = {}
    for lookup in LOOKUPS:
        own = ids[:, columns[lookup.feature]]
        w = (own >= 0) * (1.0 if id_weights is None else id_weights[:, columns[lookup.feature]])
        rows = jnp.maximum(own if lookup.id_map is None else lookup.id_map(own), 0)
        vectors = (weights[lookup.table][rows] * w[:, :, None]).sum(axis=1)
        if lookup.pooling == "mean":
            total = w.sum(axis=1, keepdims=True)
            vectors = jnp.where(total == 0, 0, vectors / jnp.where(total == 0, 1, total))
        pooled[lookup.name] = vectors
    return pooled


@pytest.mark.parametrize(
    ("plan", "weighted", "sums"),
    [
        ("mixed", False, True),
        ("mixed", True, False),
        ("row_wise", True, True),
        ("table_wise", False, False),
        ("replicated", True, True),
    ],
)
def test_row_gradients_are_those_of_dense_autodiff(plan, weighted, sums):
    with jax.enable_x64(True):
        tables = collection(plan=plan, tables=SPARSE)
        rng = np.random.default_rng(7)
        weights = {t.name: rng.normal(size=(t.rows, t.dim)) for t in SPARSE}
        state = tables.build(lambda table: {"weights": weights[table.name]}, 0)
        ids, id_weights = random_batch(8)
        # Far apart in the large tables, with repetition within and across devices.
        ids[:, 1:4] = np.where(ids[:, 1:4] >= 0, ids[:, 1:4] * 301, -1)
        ids[:, 6:] = np.where(ids[:, 6:] >= 0, ids[:, 6:] * 3, -1)
        id_weights = id_weights.astype(np.float64) if weighted else None

        def step(state, ids, id_weights):
            pooled, context = tables.lookup(state, ids, id_weights)
            cotangents = jax.grad(scalar)(pooled)
            gradients = tables.aggregate(tables.back(context, cotangents), sums)
            norm = gradients.squared_norm() if sums else jnp.zeros(())
            return tables.apply(state, gradients, jnp.zeros((), jnp.int32)), norm

        new, norm = jax.jit(step)(state, ids, id_weights)
        dense = jax.jit(jax.grad(lambda w: scalar(pooled_densely(w, ids, id_weights))))(weights)

        for table, arrays in tables.read(new):
            gradient = weights[table.name] - np.asarray(arrays["weights"])
            np.testing.assert_allclose(
                gradient, dense[table.name], rtol=1e-9, atol=1e-12, err_msg=table.name
            )
            touched = np.any(np.asarray(dense[table.name]) != 0, axis=1)
            assert touched.sum() > 0
            np.testing.assert_array_equal(
                np.asarray(arrays["weights"])[~touched], weights[table.name][~touched]
            )
        if sums:
            expected = sum(np.sum(np.square(g)) for g in dense.values())
            np.testing.assert_allclose(norm, expected, rtol=1e-12)


def test_a_norm_needs_sums():
    tables = collection()
    state = tables.init(0)

    def norm(state, ids):
        pooled, context = tables.lookup(state, ids)
        return tables.aggregate(tables.back(context, pooled)).squared_norm()

    with pytest.raises(UserError, match=r"a norm needs aggregate\(.*sum_duplicates"):
        jax.eval_shape(norm, state, random_batch()[0])


def test_frozen_tables_have_no_gradient_and_stay():
    tables = collection()
    arrays = random_arrays()
    state = built(tables, arrays)
    ids, _ = random_batch()

    def step(state, ids):
        pooled, context = tables.lookup(state, ids)
        return tables.update(state, context, pooled, jnp.asarray(0))

    new = read(tables, jax.jit(step)(state, ids))
    for table in TABLES:
        same = np.array_equal(new[table.name]["weights"], arrays[table.name]["weights"])
        assert same == (not table.trainable)
    assert "accumulator" not in new["f"]


def test_pieces_in_any_order():
    table = Table("a", 7, 4)
    plan = Plan(4, tuple(Piece("a", k, 4, (k + 1) % 4) for k in range(4)))
    mesh = make_mesh("2x4")
    collection = EmbeddingCollection(
        [table], [Feature("f")], [Lookup("f", "f", "a")], mesh, SGD(0.1), plan
    )
    weights = np.arange(28, dtype=np.float32).reshape(7, 4)
    state = collection.build(lambda table: {"weights": weights}, seed=0)
    pooled, _ = collection.lookup(state, jnp.arange(8, dtype=jnp.int32)[:, None] % 7)
    np.testing.assert_array_equal(pooled["f"], weights[np.arange(8) % 7])
    ((_, arrays),) = collection.read(state)
    np.testing.assert_array_equal(arrays["weights"], weights)
